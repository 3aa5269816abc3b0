module github.com/vallum/vallum/tools

go 1.26.0

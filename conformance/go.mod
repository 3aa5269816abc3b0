module github.com/vallum/vallum/conformance

go 1.26.0

replace github.com/vallum/vallum => ../

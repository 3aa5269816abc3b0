package audit

var children = map[string]func(dir string){}

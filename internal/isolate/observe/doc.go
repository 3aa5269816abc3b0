// Package observe looks at a Linux machine's network: devices, routes, tables, and the sockets of every namespace.
// It refuses to change anything, and says what it could not see instead of leaving it out.
package observe

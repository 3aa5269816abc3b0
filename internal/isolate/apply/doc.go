// Package apply makes a Linux machine what a plan says, undoes it, and rolls back what nobody confirmed.
// It refuses to begin before the rollback is armed outside its own process, and touches nothing that is not its own.
package apply

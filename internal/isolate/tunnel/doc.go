// Package tunnel makes and configures the overlay's device: the kernel's WireGuard, or wireguard-go in this process.
// It refuses to take over a device that is not WireGuard's, and to put keys anywhere but into the device.
package tunnel

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptCertificate is `certificate NAME [expired]`: it makes NAME.crt and NAME.key.
func scriptCertificate(ts *testscript.TestScript, _ bool, args []string) {
	until := time.Now().Add(time.Hour)
	if len(args) == 2 {
		until = time.Date(2021, 1, 31, 0, 0, 0, 0, time.UTC)
	}
	ts.Check(makeCertificate(ts.MkAbs(args[0]), until))
}

// makeCertificate writes NAME.crt and NAME.key, for 127.0.0.1.
func makeCertificate(name string, until time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Date(2020, 1, 31, 0, 0, 0, 0, time.UTC), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}

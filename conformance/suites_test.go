//go:build conformance

package conformance

import (
	"crypto/rand"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/vallum/vallum/conformance/parts"
	"github.com/vallum/vallum/conformance/realvllm"
	"github.com/vallum/vallum/conformance/report"
)

const vllmVersion = parts.VLLMVersion

// upstreamKey is vLLM's own key, new in each run: a canary that no client, log
// line, record or metric may ever show.
var upstreamKey = "sk-vllm-" + randomHex()

func randomHex() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// suite is one vLLM configuration and all that is proven against it, in order:
// what harms the server comes last.
type suite struct {
	config realvllm.Config
	models []string // what the gateway is told it serves
	proofs []proof
}

// proof is one property.
type proof struct {
	name string
	run  func(p *report.Proof, s *stand)
}

func (s suite) part() string { return "vLLM " + s.config.Name }

// suites is every suite, in the order in which they run.
func suites() []suite {
	return []suite{
		{realvllm.OpenA(upstreamKey), []string{"tiny"}, proofsA()},
		{realvllm.DefaultB(), []string{"tiny"}, proofsB()},
		{realvllm.EmbedC(), []string{"tiny-embed"}, proofsC()},
		{realvllm.ClassifyD(), []string{"tiny-classify"}, proofsD()},
		{realvllm.MediaE(upstreamKey), []string{"tiny-vision"}, proofsE()},
		{realvllm.SpeechF(), []string{"tiny-speech"}, proofsF()},
	}
}

func proofsA() []proof {
	return slices.Concat(
		[]proof{routesAreCatalogued, keyIsOnAtUpstream},
		attacksOnOpenRoutes(), attacksOnBodies(), attacksOnNeighbours(),
		operationsOfGenerate(), operationsOfTools(), operationsOfOperator(), clientsPassUnchanged(),
		[]proof{corpusPasses, zeroConfiguration},
		[]proof{upstreamKeyIsNeverSeen, recordsHold},
		[]proof{terminatedWithStreams}, // ends the server
	)
}

func proofsB() []proof {
	return slices.Concat(
		[]proof{routesAreCatalogued},
		attacksOnDefaults(), operationsOfGenerate(),
		[]proof{zeroConfiguration},
		[]proof{frozenWithStreams, killedWithStreams}, // ends the server
	)
}

func proofsC() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnPooling("/score", "/rerank", "/pooling"), operationsOfEmbed(), embeddingClientsPassUnchanged())
}

func proofsD() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnPooling("/classify", "/pooling"), operationsOfClassify())
}

func proofsE() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnMedia(), operationsOfMedia(),
		[]proof{upstreamKeyIsNeverSeen, engineKilledWithStreams}) // ends the server
}

func proofsF() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnSpeech(), operationsOfSpeech(), speechClientsPassUnchanged(),
		[]proof{recordsHold})
}

func TestA(t *testing.T) { runSuite(t, "A") }
func TestB(t *testing.T) { runSuite(t, "B") }
func TestC(t *testing.T) { runSuite(t, "C") }
func TestD(t *testing.T) { runSuite(t, "D") }
func TestE(t *testing.T) { runSuite(t, "E") }
func TestF(t *testing.T) { runSuite(t, "F") }

// These come after the suites, whose servers are gone by then: they start vLLMs of their own.
func TestIsolateTorch(t *testing.T) { proveAll(t, torchPart, torchVersion, torchProofs) }

// proveAll runs proofs that need no stand.
func proveAll(t *testing.T, part, version string, proofs []proof) {
	for _, pr := range proofs {
		table.Prove(t, part, version, pr.name, func(p *report.Proof) { pr.run(p, nil) })
	}
}

// runSuite waits for the configuration's server and runs every proof. Without
// a server, each proof is NOT RUN.
func runSuite(t *testing.T, name string) {
	i := slices.IndexFunc(suites(), func(s suite) bool { return s.config.Name == name })
	s := suites()[i]
	st, err := fleet.stand(name)
	if err == nil {
		t.Logf("vLLM %s was ready %s after its start", name, st.vllm.Ready)
		defer st.stop()
	}
	for _, pr := range s.proofs {
		table.Prove(t, s.part(), vllmVersion, pr.name, func(p *report.Proof) {
			if err != nil {
				p.NotRun("%v", err)
			}
			pr.run(p, st)
		})
	}
}

//go:build conformance

package conformance

import (
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"
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
	beside []realvllm.Config // servers behind the same gateway: none, or one
	proofs []proof
}

// proof is one property.
type proof struct {
	name string
	run  func(p *report.Proof, s *stand)
}

// name is what its test is called by: that of its server, less which of two
// it is.
func (s suite) name() string {
	name, _, _ := strings.Cut(s.config.Name, "-")
	return name
}

func (s suite) part() string { return "vLLM " + s.name() }

func (s suite) configs() []realvllm.Config { return append([]realvllm.Config{s.config}, s.beside...) }

// suites is every suite, in the order in which they run.
func suites() []suite {
	left, right := realvllm.PairH(upstreamKey)
	return []suite{
		{config: realvllm.OpenA(upstreamKey), proofs: proofsA()},
		{config: realvllm.DefaultB(), proofs: proofsB()},
		{config: realvllm.EmbedC(), proofs: proofsC()},
		{config: realvllm.ClassifyD(), proofs: proofsD()},
		{config: realvllm.MediaE(upstreamKey), proofs: proofsE()},
		{config: realvllm.SpeechF(), proofs: proofsF()},
		{config: realvllm.OldestG(upstreamKey), proofs: proofsG()},
		{config: left, beside: []realvllm.Config{right}, proofs: proofsH()},
	}
}

func proofsA() []proof {
	granted := slices.Concat(operationsOfGenerate(), operationsOfTools(), operationsOfOperator())
	return slices.Concat(
		[]proof{routesAreCatalogued, keyIsOnAtUpstream},
		attacksOnOpenRoutes(), attacksOnBodies(), attacksOnNeighbours(),
		works(granted), clientsPassUnchanged(),
		[]proof{corpusPasses, zeroConfiguration},
		[]proof{countsAgree(granted, 2, "openai", "anthropic"), leftIsCounted},
		[]proof{revokedWhileStreaming, reloadedWhileStreaming, hangUpStopsTheEngine},
		[]proof{promptsAreNeverSeen, secretsAreNeverSeen, recordsHold},
		[]proof{terminatedWithStreams}, // ends the server
	)
}

func proofsB() []proof {
	return slices.Concat(
		[]proof{routesAreCatalogued},
		attacksOnDefaults(), works(operationsOfGenerate()),
		[]proof{zeroConfiguration, hangUpStopsTheEngine},
		[]proof{addressIsBelieved, wrongKeysAreCounted, streamsFlush, behindByFlag},
		[]proof{frozenWithStreams, killedWithStreams}, // ends the server
	)
}

func proofsC() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnPooling("/score", "/rerank", "/pooling"), works(operationsOfEmbed()), embeddingClientsPassUnchanged(),
		[]proof{countsAgree(operationsOfEmbed(), 0, "embeddings"), promptsAreNeverSeen})
}

func proofsD() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnPooling("/classify", "/pooling"), works(operationsOfClassify()),
		[]proof{countsAgree(operationsOfClassify(), 0)})
}

func proofsE() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnMedia(), works(operationsOfMedia()),
		[]proof{countsAgree(operationsOfMedia(), 0), promptsAreNeverSeen, secretsAreNeverSeen, engineKilledWithStreams}) // ends the server
}

func proofsF() []proof {
	return slices.Concat([]proof{routesAreCatalogued}, attacksOnSpeech(), works(operationsOfSpeech()), formsAreRebuilt(), speechClientsPassUnchanged(),
		[]proof{streamCountsAgree(), soundIsCharged, promptsAreNeverSeen, recordsHold})
}

// without is the proofs less one.
func without(proofs []proof, name string) []proof {
	i := slices.IndexFunc(proofs, func(p proof) bool { return p.name == name })
	return slices.Delete(proofs, i, i+1)
}

// proofsG is what has to hold in the oldest release for which behaviour is
// promised as well.
func proofsG() []proof {
	granted := slices.Concat(operationsOfGenerate(), operationsOfTools(), operationsOfOperator())
	return slices.Concat(
		[]proof{routesAreCatalogued, keyIsOnAtUpstream},
		without(attacksOnOpenRoutes(), "/kv_event_sources"),                                    // the route is newer
		without(attacksOnBodies(), "vllm_xargs carries transfer parameters past field checks"), // takes no notice of them yet
		attacksOnNeighbours(),
		works(granted), pythonClientsPassUnchanged(),
		[]proof{corpusPasses, countsAgree(granted, 2, "openai", "anthropic"), hangUpStopsTheEngine},
		[]proof{promptsAreNeverSeen, secretsAreNeverSeen, recordsHold},
		[]proof{stopIDsEndTheEngine}, // ends the server
	)
}

func TestA(t *testing.T) { runSuite(t, "A") }
func TestB(t *testing.T) { runSuite(t, "B") }
func TestC(t *testing.T) { runSuite(t, "C") }
func TestD(t *testing.T) { runSuite(t, "D") }
func TestE(t *testing.T) { runSuite(t, "E") }
func TestF(t *testing.T) { runSuite(t, "F") }
func TestG(t *testing.T) { runSuite(t, "G") }
func TestH(t *testing.T) { runSuite(t, "H") }

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
	i := slices.IndexFunc(suites(), func(s suite) bool { return s.name() == name })
	s := suites()[i]
	st, err := fleet.stand(name)
	if err == nil {
		t.Logf("vLLM %s was ready %s after its start", name, st.vllm.Ready)
		defer st.stop()
	}
	for _, pr := range s.proofs {
		table.Prove(t, s.part(), s.config.Release(), pr.name, func(p *report.Proof) {
			if err != nil {
				p.NotRun("%v", err)
			}
			pr.run(p, st)
		})
	}
}

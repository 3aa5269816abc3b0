package observe

import (
	"maps"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/vallum/vallum/internal/isolate"
)

func TestWhatGoesPastTheRulesIsFound(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	found := bypasses(fstest.MapFS{
		"sys/class/infiniband/mlx5_0/ports/1/link_layer":           file("InfiniBand\n"),
		"sys/class/infiniband/mlx5_1/ports/1/link_layer":           file("Ethernet\n"),
		"sys/class/infiniband/rdmap0s6/ports/1/gid_attrs":          file(""),
		"sys/module/nvidia_peermem/refcnt":                         file("0\n"),
		"dev/nvidia0":                                              file(""),
		"dev/nvidia-nvswitchctl":                                   file(""),
		"dev/nvidia-nvswitch0":                                     file(""),
		"dev/nvidia-caps-imex-channels/channel0":                   file(""),
		"sys/class/kfd/kfd/topology/nodes/1/io_links/0/properties": file("type 2\nversion_major 0\n"),
		"sys/class/kfd/kfd/topology/nodes/2/io_links/0/properties": file("type 11\nversion_major 0\n"),
	}, []isolate.Device{{Name: "eth0"}, {Name: "cilium_host"}})
	want := []isolate.Bypass{
		{Name: "mlx5_0", Kind: isolate.InfiniBand},
		{Name: "mlx5_1", Kind: isolate.RoCE},
		{Name: "rdmap0s6", Kind: isolate.RDMA},
		{Name: "nvidia_peermem", Kind: isolate.GPUDirect},
		{Name: "nvidia-nvswitch0", Kind: isolate.NVSwitch},
		{Name: "channel0", Kind: isolate.IMEX},
		{Name: "node 2", Kind: isolate.XGMI},
		{Name: "cilium_host", Kind: isolate.EBPF},
	}
	if !slices.Equal(found, want) {
		t.Errorf("%+v, want %+v", found, want)
	}
	if none := bypasses(fstest.MapFS{"dev/null": file("")}, nil); len(none) != 0 {
		t.Errorf("on a machine with nothing of it: %+v", none)
	}
}

func TestOnlySettingsAreKeptOfAnEnvironment(t *testing.T) {
	for name, row := range map[string]struct {
		environ string
		want    map[string]string
		whole   bool
	}{
		"an environment":            {"HF_TOKEN=secret\x00NCCL_NET=Socket\x00UCX_TLS=tcp,sm=1\x00xNCCL_NET=IB\x00NCCL_NETX=IB\x00", map[string]string{"NCCL_NET": "Socket", "UCX_TLS": "tcp,sm=1"}, true},
		"none of it":                {"PATH=/bin\x00", map[string]string{}, true},
		"an empty one":              {"", map[string]string{}, true},
		"overwritten by a title":    {"\x00\x00\x00\x00\x00\x00", map[string]string{}, false},
		"overwritten by a long one": {"orker_TP0\x00\x00\x00", map[string]string{}, false},
		// Seen with the real vLLM 0.32.0: 1,900 zeros, then what the process has set itself.
		"overwritten in part": {"\x00\x00\x00\x00VLLM_WORKER_MULTIPROC_METHOD=spawn\x00NCCL_NET=Socket\x00", map[string]string{"NCCL_NET": "Socket"}, false},
	} {
		if got, whole := settingsOf([]byte(row.environ)); !maps.Equal(got, row.want) || whole != row.whole {
			t.Errorf("%s: %v, whole %v", name, got, whole)
		}
	}
}

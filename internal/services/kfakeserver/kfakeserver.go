// Package kfakeserver gives fast tests a Kafka broker inside the test process: franz-go's kfake. It is apart from services so
// that tests which need no Kafka do not link it.
package kfakeserver

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// StartKFake starts a fake cluster of one broker that creates unknown topics with one partition when a client allows it, and
// returns its host:port. It ends with the test.
func StartKFake(t testing.TB, opts ...kfake.Opt) string {
	t.Helper()
	return StartCluster(t, opts...).ListenAddrs()[0]
}

// StartCluster is StartKFake for tests that control the cluster: inject errors, move partitions, add brokers.
func StartCluster(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	defaults := []kfake.Opt{kfake.NumBrokers(1), kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(1)}
	cluster, err := kfake.NewCluster(append(defaults, opts...)...)
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

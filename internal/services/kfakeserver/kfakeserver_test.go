package kfakeserver

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestStartKFakeCarriesARecord(t *testing.T) {
	t.Parallel()
	client, err := kgo.NewClient(kgo.SeedBrokers(StartKFake(t)), kgo.ConsumeTopics("jobs"), kgo.AllowAutoTopicCreation(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "jobs", Value: []byte("hello")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	records := client.PollFetches(t.Context()).Records()
	if len(records) != 1 || string(records[0].Value) != "hello" {
		t.Fatalf("got %v", records)
	}
}

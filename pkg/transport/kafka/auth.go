package kafka

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/aws"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// SASL is how a client proves itself. The zero value proves nothing.
type SASL struct {
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, AWS_MSK_IAM; empty for none

	Username string // PLAIN and SCRAM
	Password string

	Token     string // OAUTHBEARER
	TokenFile string // OAUTHBEARER: read at each login, so that it may be replaced while we run

	AccessKey    string // AWS_MSK_IAM
	SecretKey    string
	SessionToken string
}

// mechanism returns nil where nothing is to be proved.
func (s *SASL) mechanism() (sasl.Mechanism, error) {
	need := func(names string, missing bool) error {
		if missing {
			return fmt.Errorf("SASL %s needs %s", s.Mechanism, names)
		}
		return nil
	}
	login := need("a username and a password", s.Username == "" || s.Password == "")
	switch s.Mechanism {
	case "":
		if *s != (SASL{}) {
			return nil, errors.New("SASL credentials are given without a mechanism: name one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, AWS_MSK_IAM")
		}
		return nil, nil
	case "PLAIN":
		return plain.Auth{User: s.Username, Pass: s.Password}.AsMechanism(), login
	case "SCRAM-SHA-256":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha256Mechanism(), login
	case "SCRAM-SHA-512":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha512Mechanism(), login
	case "OAUTHBEARER":
		return oauth.Oauth(s.oauth), need("a token or a token file, and not both", (s.Token == "") == (s.TokenFile == ""))
	case "AWS_MSK_IAM":
		key := aws.Auth{AccessKey: s.AccessKey, SecretKey: s.SecretKey, SessionToken: s.SessionToken}
		return key.AsManagedStreamingIAMMechanism(), need("an access key and a secret key", s.AccessKey == "" || s.SecretKey == "")
	default:
		return nil, fmt.Errorf("unknown SASL mechanism %q: use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or AWS_MSK_IAM", s.Mechanism)
	}
}

// oauth returns the token for one login.
func (s *SASL) oauth(context.Context) (oauth.Auth, error) {
	if s.TokenFile == "" {
		return oauth.Auth{Token: s.Token}, nil
	}
	b, err := os.ReadFile(s.TokenFile)
	if err != nil {
		return oauth.Auth{}, fmt.Errorf("read the OAUTHBEARER token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return oauth.Auth{}, fmt.Errorf("the OAUTHBEARER token file %s is empty", s.TokenFile)
	}
	return oauth.Auth{Token: token}, nil
}

// who names the mechanism and the user, for error texts.
func (s *SASL) who() string {
	switch {
	case s.Mechanism == "":
		return "without SASL"
	case s.Username != "":
		return fmt.Sprintf("by SASL %s as user %q", s.Mechanism, s.Username)
	case s.AccessKey != "":
		return fmt.Sprintf("by SASL %s with access key %q", s.Mechanism, s.AccessKey)
	case s.TokenFile != "":
		return fmt.Sprintf("by SASL %s with the token in %s", s.Mechanism, s.TokenFile)
	default:
		return "by SASL " + s.Mechanism
	}
}

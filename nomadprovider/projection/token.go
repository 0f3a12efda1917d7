package projection

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// refreshIn is how long until the token has lived 80 % of its life, or 24 h,
// whichever is first; 0 or less when that is past or the token cannot be read
// (pkg/kubelet/token/token_manager.go, requiresRefresh).
func refreshIn(token string, now time.Time) time.Duration {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0
	}
	var claims struct {
		IssuedAt int64 `json:"iat"`
		Expires  int64 `json:"exp"`
	}
	if json.Unmarshal(raw, &claims) != nil || claims.Expires <= claims.IssuedAt {
		return 0
	}
	issued := time.Unix(claims.IssuedAt, 0)
	life := time.Duration(float64(claims.Expires-claims.IssuedAt) * tokenRefresh * float64(time.Second))
	return issued.Add(min(life, 24*time.Hour)).Sub(now)
}

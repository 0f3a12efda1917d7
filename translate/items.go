package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// items collects projected values, one per distinct source.
type items struct {
	list []Item
	keys map[string]string
}

// add returns the key of the item, adding it if it is new.
func (s *items) add(it Item) string {
	kind, id, label := it.identity()
	if it.Quoted {
		kind, id = kind+"_quoted", "quoted\x00"+id
	}
	if key, ok := s.keys[id]; ok {
		// Required once is required.
		if !it.Optional {
			for i := range s.list {
				if s.list[i].Key == key {
					s.list[i].Optional = false
				}
			}
		}
		return key
	}
	// The key hangs on the source alone, so that translating the pod again,
	// when objects it refers to have changed, names the same values the same.
	sum := sha256.Sum256([]byte(id))
	it.Key = fmt.Sprintf("%s_%s_%s", kind, word(label), hex.EncodeToString(sum[:8]))
	s.keys[id] = it.Key
	s.list = append(s.list, it)
	return it.Key
}

// identity returns the item's kind, a string that is the same for the same
// source only, and a word for people.
func (it *Item) identity() (kind, id, label string) {
	join := func(parts ...string) string { return strings.Join(parts, "\x00") }
	switch {
	case it.ConfigMap != nil:
		return "cm", join("cm", it.ConfigMap.Name, it.ConfigMap.Key), it.ConfigMap.Name + "_" + it.ConfigMap.Key
	case it.Secret != nil:
		return "sec", join("sec", it.Secret.Name, it.Secret.Key), it.Secret.Name + "_" + it.Secret.Key
	case it.Token != nil:
		return "tok", join("tok", it.Token.Audience, strconv.FormatInt(it.Token.ExpirationSeconds, 10)), it.Token.Audience
	case it.Registry != nil:
		return "reg", join("reg", it.Registry.Image, it.Registry.Part, strings.Join(it.Registry.Secrets, ",")), it.Registry.Part
	case it.Field != "":
		return "fld", join("fld", it.Field), it.Field
	}
	return "lit", join("lit", *it.Literal), ""
}

// word makes s fit into an item's key.
func word(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
	if len(s) > 24 {
		s = s[:24]
	}
	return s
}

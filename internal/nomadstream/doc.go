// Package nomadstream keeps a view of Nomad current by list and watch: it
// lists, follows the event stream from the list's index, and lists again
// whenever the stream ends. Nomad keeps its events in a bounded buffer per
// server and gives no sign of a gap (nomad/stream/event_buffer.go), so nothing
// but a new list is trusted after an interruption.
//
// The stream is read without the API client's own decoder because that one
// hides the heartbeats, and a connection that is silently dead is only told
// from a quiet one by their absence.
package nomadstream

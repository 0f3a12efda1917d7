#!/bin/sh
# Runs the container's command, whose output is the container's log, and shuts the
# machine down when it has ended. How it ended is told on the second serial port.
base=/run/nomad-kubelet
message=$(sed -n '1s/^#message //p' "$base/command")
mkdir -p "${message%/*}/"
# A shell ends when its own : cannot be redirected.
true >"$message"
sh "$base/command" </dev/null >/dev/ttyS0 2>&1
code=$?
exec 3<>/dev/ttyS1
# The answer is waited for 25.5 s.
stty raw -echo min 0 time 255 <&3
{ echo "$code"; head -c 4096 "$message"; } >&3
# A machine that is shut down has ended well, unless somebody sees to the code.
if [ "$code" -ne 0 ] && [ -z "$(head -n 1 <&3)" ]; then
	sync
	echo c >/proc/sysrq-trigger
fi
poweroff

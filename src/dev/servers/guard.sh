# Runs a program that cannot outlive the process that started it.
#
# Standard input is a pipe whose only writer is that process. A watcher reads it: the end of the file means that the
# owner is gone, however it went, and then the program is stopped and its directory removed; a line means that the owner
# has seen the program end and cleans up itself. The program takes the place of this shell, so that the owner's child is
# the program, and its number stays ours until the owner has waited for it. The watcher is no child of the program:
# PostgreSQL would take its end for that of a crashed backend.
#
# Arguments: SIGNAL TENTHS_OF_A_SECOND DIRECTORY PROGRAM [ARGUMENT...]
signal=$1 patience=$2 directory=$3
shift 3
server=$$
exec 3<&0

alive() {
    kill -0 "$server" 2>/dev/null || return 1
    read -r status 2>/dev/null <"/proc/$server/stat" || return 0
    case $status in *') Z '*) return 1 ;; esac
}

watch() {
    read -r _ && return
    kill -"$signal" "$server"
    kill -CONT "$server"
    while alive && [ "$patience" -gt 0 ]; do
        sleep 0.1
        patience=$((patience - 1))
    done
    kill -KILL "$server"
    # What a killed server leaves running may still write for a moment.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf -- "$directory" && return
        sleep 0.1
    done
}

# The watcher gives up its output: that is the log, and whoever holds the log open counts as a server that still runs.
(watch <&3 3<&- >/dev/null 2>&1 &)
exec "$@" 3<&- </dev/null

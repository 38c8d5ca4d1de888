# Runs one postgres and makes sure that it never outlives its owner.
#   $1      the signal that ends postgres: INT (fast: disconnect, checkpoint) or QUIT (immediate)
#   $2      the owner: "pipe" (whoever holds the other end of our stdin) or a pid to watch
#   $3      a directory to delete afterwards, or ""
#   $4      a directory of the socket's own, deleted afterwards too, or ""
#   $5...   the postgres command line
# stdin: the owner's pipe; stdout: the lock file that postgres must keep open; stderr: the log.
trap '' HUP INT TERM               # a Ctrl-C in the terminal is for the owner to handle
sig=$1 owner=$2 trash=$3 sockets=$4; shift 4
exec 3<&0 </dev/null
"$@" 3<&- 4>&1 >&2 &               # fd 4, inherited by every backend, keeps the lock held
pg=$!
# A process of another user exists too: kill then says "not permitted".
alive() { said=$(kill -0 "$1" 2>&1) && return; case $said in *ermitted*) ;; *) return 1 ;; esac; }
{
    if [ "$owner" = pipe ]; then read -r _ <&3; else while alive "$owner"; do sleep 0.2; done; fi
    n=0
    while kill "-$sig" $pg; do sleep 0.1; n=$((n + 1)); [ $n -lt 100 ] || sig=QUIT; done
} >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait $pg; rc=$?
kill -KILL $watch 2>/dev/null
[ -z "$sockets" ] || rm -rf "$sockets"
# Others of the same run may still be writing there while they end.
[ -z "$trash" ] || for _ in 1 2 3 4 5 6 7 8; do rm -rf "$trash" && break; sleep 0.5; done
exit $rc

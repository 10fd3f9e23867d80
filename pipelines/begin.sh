# Sourced by the scripts beside it. `begin SEED FOLDER [FAMILY]`: one of them at a time, with one seed and one family of
# models, writes to a folder.

begin() {
    local made="$(basename "$0") with seed $1" out=$2 family=${3:-qwen2_vl}
    [ "$family" = qwen2_vl ] || made+=" and FAMILY=$family"
    mkdir -p "$out"
    exec 9>>"$out/.script.lock" # held until this script and all that it started have ended
    if ! flock --nonblock 9; then
        echo "error: $out: $(cat "$out/.script.lock"); wait for it, end it, or choose another OUTPUT_DIR (OUT of make)" >&2
        exit 1
    fi
    echo "process $$ on $(uname -n) has been writing to it since $(date +%Y-%m-%dT%H:%M:%S%z) ($made)" >"$out/.script.lock"
    if [ -f "$out/.script" ] && [ "$(cat "$out/.script")" != "$made" ]; then
        echo "error: $out holds what $(cat "$out/.script") made, and this is $made;" \
            "choose another OUTPUT_DIR (OUT of make), or remove it" >&2
        exit 1
    fi
    echo "$made" >"$out/.script"
}

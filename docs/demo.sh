#!/bin/sh
# Convert and validate fixtures of several kinds; the shards stay in demo/.
set -eu
PATH="$PWD/$BIN:$PATH"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
run() { say "$(quoted "$@" | sed 's/ $//')"; "$@"; }
quoted() { # the words as they have to be typed
    for word in "$@"; do
        case $word in *\ *) printf '"%s" ' "$word" ;; *) printf '%s ' "$word" ;; esac
    done
}

rm -rf demo
run datakit convert fixtures/sharegpt/good.jsonl -o demo/sft
run datakit convert fixtures/hh-rlhf/good.jsonl -o demo/preference
run datakit convert fixtures/kto-conversation/good.jsonl -o demo/kto
run datakit convert fixtures/verl/good.jsonl -o demo/prompts

say "datakit convert fixtures/openai/good.jsonl fixtures/openai/bad.jsonl -o demo/chat    # two files, one with bad rows"
datakit convert fixtures/openai/good.jsonl fixtures/openai/bad.jsonl -o demo/chat && exit 1 || test $? -eq 1

say 'the same, with the bad rows set aside'
run datakit convert fixtures/openai/good.jsonl fixtures/openai/bad.jsonl -o demo/chat \
    --on-bad-row quarantine --max-bad "10 rows"
run datakit validate demo/chat
run datakit verify demo/chat
run datakit stats demo/chat
run datakit export demo/chat --jsonl demo/chat.jsonl

printf "\nShards of four kinds are in demo/. Next: %s/datakit convert YOUR.jsonl -o shards/\n" "$BIN"

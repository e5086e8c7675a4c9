#!/bin/sh
# Runs every benchmark of docs/benchmarks.md on this machine's CPU and fills the tables, README's among them: about two
# hours of an idle machine. PEER=/path/to/train_text_to_image.py of a diffusers checkout adds the training.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
R=benchmarks/results
D=docs/benchmarks.md
run() {
    echo "+ $*" >&2
    "$PYTHON" "$@"
}
run benchmarks/generate.py --out $R/generate-cpu.json --update README.md $D roentgen/models/mini/README.md
run benchmarks/profile_networks.py --out $R/profile-cpu.json --update $D
run benchmarks/profile_networks.py --part training --out $R/profile-training-cpu.json --update $D
run benchmarks/compiled.py --out $R/compiled-cpu.json --update $D
run eval/guided_share.py --out eval/results/mini --update $D
run benchmarks/load.py --repeats 2 --unsettled generate --out $R/load-cpu.json --update $D
run benchmarks/eval.py --out $R/eval-cpu.json --update $D
run benchmarks/profile_networks.py --part evaluation --out $R/profile-evaluation-cpu.json --update $D
run benchmarks/growth.py --rows 1000,10000,100000 --out $R/growth-cpu.json --update $D
if [ -n "${PEER:-}" ]; then
    run benchmarks/train.py --peer "$PEER" --short 8 --long 56 --out $R/train-cpu.json --update $D
fi

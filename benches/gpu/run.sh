#!/usr/bin/env bash
# Every check that wants a GPU, from the repository's root, with what `cargo xtask gpu` packed into .gpu:
#
#     benches/gpu/run.sh --out FOLDER [--device cpu] [--quick] [--bin FOLDER] [--python PROGRAM] [--limit SECONDS]
#
# FOLDER gets checks.jsonl (one line per check: passed, failed or not run, and why), bench.jsonl (every measurement),
# verify.jsonl, doctor.json and log.txt; they belong under benches/runs/. A check that fails stops no other. Without a
# GPU everything that needs one is listed as not run; `--device cpu --quick` tries the script itself on any machine.
#
# The binaries were linked against libtorch 2.11.0 and take that of the machine's Python. Another version is accepted if
# every symbol they use resolves (all are bound at once in the first check); then the results name it.
set -uo pipefail

device=cuda quick=0 out="" bin="" python=python3 limit=570
while [ $# -gt 0 ]; do
    case "$1" in
    --device) device=$2 && shift 2 ;;
    --quick) quick=1 && shift ;;
    --out) out=$2 && shift 2 ;;
    --bin) bin=$2 && shift 2 ;;
    --python) python=$2 && shift 2 ;;
    --limit) limit=$2 && shift 2 ;;
    *) echo "unknown argument $1: see the head of $0" >&2 && exit 64 ;;
    esac
done
[ -n "$out" ] || { echo "--out FOLDER is needed" >&2 && exit 64; }
case "$device" in cpu | cuda) ;; *) echo "--device $device: cpu or cuda" >&2 && exit 64 ;; esac
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
if [ -z "$bin" ]; then
    tar --extract --gzip --file .gpu/bin.tar.gz --directory "$work" || { echo "run cargo xtask gpu before" >&2 && exit 78; }
    bin=$work/bin
fi
[ -x "$bin/equipoise" ] || { echo "$bin/equipoise: not there" >&2 && exit 78; }

mkdir -p "$out" && out=$(cd "$out" && pwd) && bin=$(cd "$bin" && pwd)
: >"$out/checks.jsonl" && : >"$out/bench.jsonl" && : >"$out/log.txt"
torch_lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))') ||
    { echo "$python: no PyTorch there" >&2 && exit 78; }
export LD_LIBRARY_PATH="$torch_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export EQUIPOISE_HOME=$PWD OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
export device quick out bin python work
failures=0

# record NAME STATUS SECONDS DETAIL
record() {
    "$python" -c 'import json, sys; print(json.dumps(dict(zip(("check", "status", "seconds", "detail"), sys.argv[1:]))))' \
        "$@" >>"$out/checks.jsonl"
    printf '%-8s %-24s %4s s  %s\n' "$2" "$1" "$3" "$4"
}

# check NAME SECONDS FUNCTION: the function's last line of output is the detail.
check() {
    local name=$1 bound=$2 start=$SECONDS code status left=$((limit - SECONDS))
    [ "$left" -gt 10 ] || { record "$name" "not run" 0 "no time left of $limit s" && return; }
    [ "$bound" -lt "$left" ] || bound=$left
    printf '\n== %s\n' "$name" >>"$out/log.txt"
    timeout --kill-after=5 "$bound" bash -c "set -euo pipefail; $3" >"$work/said" 2>&1
    code=$?
    cat "$work/said" >>"$out/log.txt"
    case $code in 0) status=passed ;; 124 | 137) status=failed && echo "longer than $bound s" >>"$work/said" ;; *) status=failed ;; esac
    [ "$status" = passed ] || failures=$((failures + 1))
    record "$name" "$status" $((SECONDS - start)) "$(tail -n 1 "$work/said" | cut -c 1-400)"
}

# Hashes of everything that two equal runs have in common.
hashes() {
    (cd "$1" && find . \( -name lock -o -name logs -o -name ckpt \) -prune -o -type f \
        \( -name '*.h5' -o -name model.safetensors -o -name results.json -o -name index.json \) -print0 |
        sort -z | xargs -0 sha256sum)
}

# equipoise RUN RECIPE [SETTING]...
equipoise() {
    local run=$1 recipe=$2 settings=()
    shift 2
    for setting in "run.device=$device" "$@"; do settings+=(--set "$setting"); done
    "$bin/equipoise" run "$recipe" --run "$run" "${settings[@]}"
}

# train RUN: long enough to be killed in the middle; the same settings every time, so that a run can go on.
train() {
    equipoise "$1" tests/recipes/train.toml "classifier.steps=$([ "$device" = cuda ] && echo 4000 || echo 300)"
}

binaries() {
    local program missing
    for program in "$bin"/equipoise{,-train,-shards,-verify,-bench}; do
        missing=$(ldd "$program" | grep 'not found' || true)
        [ -z "$missing" ] || { echo "$program: $missing" && return 1; }
        case "$program" in */equipoise | */equipoise-bench) LD_BIND_NOW=1 "$program" --help >/dev/null ;;
        *) [ "$(LD_BIND_NOW=1 "$program" --build-id)" = "$("$bin/equipoise-train" --build-id)" ] ;; esac
    done
    "$python" -c 'import torch, torchvision, safetensors, numpy; print("torch", torch.__version__, "torchvision", torchvision.__version__, "CUDA", torch.version.cuda)'
}

doctor() {
    # It also looks for mpirun, which such a machine need not have.
    "$bin/equipoise" doctor --output json >"$out/doctor.json" || true
    "$python" - "$out/doctor.json" "$device" <<'END'
import json, sys
found = {finding["check"]: finding for finding in json.load(open(sys.argv[1]))}
if sys.argv[2] == "cuda":
    assert found["GPU"]["found"][0] != "n", found["GPU"]
    assert found["NCCL"]["passed"] and "not there" not in found["NCCL"]["found"], found["NCCL"]
print("GPU:", found["GPU"]["found"], "| NCCL:", found["NCCL"]["found"])
END
}

verify() {
    local options=()
    [ "$quick" = 0 ] || options=(--kind resnet --kind ddim)
    "$bin/equipoise-verify" tests/oracle --device "$device" --output json "${options[@]}" >"$out/verify.jsonl" || {
        grep '"passed":false' "$out/verify.jsonl" || true
        tail -n 1 "$out/verify.jsonl"
        return 1
    }
    tail -n 1 "$out/verify.jsonl"
}

same_run_twice() {
    equipoise "$work/a" tests/recipes/tiny.toml && equipoise "$work/b" tests/recipes/tiny.toml
    hashes "$work/a" >"$work/a.sums" && hashes "$work/b" >"$work/b.sums"
    diff "$work/a.sums" "$work/b.sums"
    echo "$(wc -l <"$work/a.sums") shards, features, weights and results are equal"
}

# The process whose command line matches; our folders are in it, so it is ours.
process_of() {
    local line
    for line in /proc/[0-9]*/cmdline; do
        if tr '\0' ' ' 2>/dev/null <"$line" | grep -q -- "$1"; then echo "$line" | cut -d / -f 3; fi
    done
}

killed_and_resumed() {
    local run=$work/killed weights=stages/train.ce.s0/model.safetensors front step
    train "$work/whole"
    train "$run" & front=$!
    until compgen -G "$run/stages/train.ce.s0/ckpt/step-*" >/dev/null; do
        kill -0 "$front" || { echo "the training ended without a checkpoint" && return 1; }
        sleep 0.05
    done
    step=$(process_of "equipoise-train .*--run $run --set stage=train.ce.s0")
    kill -9 "$step"
    if wait "$front"; then echo "the kill came too late" && return 1; fi
    [ ! -e "$run/$weights" ] || { echo "the kill came too late" && return 1; }
    "$bin/equipoise" resume "$run"
    grep -h 'resumed at step' "$run"/stages/train.ce.s0/logs/*/rank-0000.log
    cmp "$work/whole/$weights" "$run/$weights"
    echo "the weights after SIGKILL and resume are equal: $(grep -ho 'resumed at step.*' "$run"/stages/train.ce.s0/logs/*/rank-0000.log)"
}

nccl_alone() {
    "$bin/equipoise-bench" nccl --device cuda | tee -a "$out/bench.jsonl"
}

nccl_in_training() {
    local weights=stages/train.ce.s0/model.safetensors
    [ -e "$work/whole/$weights" ] || train "$work/whole"
    EQUIPOISE_GRADIENTS=nccl train "$work/nccl"
    grep -h 'gradients over NCCL' "$work"/nccl/stages/train.ce.s0/logs/*/rank-0000.log
    cmp "$work/whole/$weights" "$work/nccl/$weights"
    echo "the weights are those without NCCL, which has nothing to add with one rank"
}

generation() {
    local batch settings
    for batch in 16 256; do
        [ "$quick" = 0 ] || [ "$batch" = 16 ] || continue
        settings=("generate.batch=$batch")
        [ "$quick" = 0 ] || settings+=(generate.plan.n=40 data.splits.test.select.profile.kind=per_class data.splits.test.select.profile.n=40)
        equipoise "$work/generate-$batch" benches/gpu/generate.toml "${settings[@]}"
        "$python" - "$work/generate-$batch" "$batch" "$device" <<'END' | tee -a "$out/bench.jsonl"
import json, pathlib, sys
for name in ("unguided", "feedback"):
    stage = pathlib.Path(sys.argv[1]) / "stages" / f"generate.{name}.k0"
    status, provenance = (json.load(open(stage / file)) for file in ("status.json", "provenance.json"))
    rate = status["total"] / provenance["seconds"]
    case = {"set": name, "batch": int(sys.argv[2]), "images": status["total"]}
    print(json.dumps({"bench": "generation", "side": "equipoise", "case": case, "device": sys.argv[3],
                      "images_per_s": rate, "seconds": provenance["seconds"]}))
END
    done
}

# beside BENCH ARGUMENT...: ours and the peer's in turn, twice.
beside() {
    local bench=$1
    shift
    local turns=(1 2) short=()
    [ "$quick" = 0 ] || turns=(1) short=(--windows 1 --rounds 1 --warmup 0)
    for _ in "${turns[@]}"; do
        "$bin/equipoise-bench" "$bench" --device "$device" "$@" "${short[@]}" | tee -a "$out/bench.jsonl"
        local peer=("${@}")
        [ "$bench" != sampling ] || peer=("${@/--dump/--same}")
        "$python" "benches/peers/$bench.py" --device "$device" "${peer[@]}" "${short[@]}" | tee -a "$out/bench.jsonl"
    done
}

sampling() {
    local batch=${1:-64} precision=${2:-fp32}
    [ "$quick" = 0 ] || batch=2
    beside sampling --batch "$batch" --precision "$precision" --dump "$work/sampled.safetensors"
}

same_samples() {
    "$python" - "$out/bench.jsonl" <<'END'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
apart = [line["largest_difference"] for line in lines if "largest_difference" in line and line["case"]["precision"] == "fp32"]
assert apart and max(apart) < 2e-2, f"other images than the peer's: {apart}"
print(f"the peer makes the same images from the same noise, within {max(apart):.1e} of a range of 2")
END
}

training() {
    local model=$1 size=$2 batch=$3 precision=$4
    [ "$quick" = 0 ] || size=32 batch=4
    beside training --model "$model" --size "$size" --batch "$batch" --precision "$precision"
}

# The same steps from the same weights end with the same loss, also where libtorch warns of an operator.
same_losses() {
    "$python" - "$out/bench.jsonl" <<'END'
import json, sys
losses, operators = {}, set()
for line in map(json.loads, open(sys.argv[1])):
    if line["bench"] == "training" and line["side"] == "equipoise":
        losses.setdefault(json.dumps(line["case"]), []).append(line["loss"])
        operators.update(line["nondeterministic"])
twice = {case: values for case, values in losses.items() if len(values) > 1}
assert twice, "no training was repeated"
apart = {case: values for case, values in twice.items() if len(set(values)) > 1}
assert not apart, f"other losses the second time: {apart}"
print(f"{len(twice)} trainings ended with the same loss twice; warned of: {', '.join(sorted(operators)) or 'nothing'}")
END
}

summary() {
    "$python" - "$out/bench.jsonl" <<'END'
import json, statistics, sys
sides = {}
for line in map(json.loads, open(sys.argv[1])):
    if "side" in line:
        case = {key: line["case"][key] for key in sorted(line["case"]) if key not in ("deterministic", "memory_format", "tf32")}
        sides.setdefault((line["bench"], json.dumps(case)), {}).setdefault(line["side"], []).append(line["images_per_s"])
for (bench, case), by_side in sides.items():
    ours, peer = (statistics.median(by_side[side]) if side in by_side else None for side in ("equipoise", "pytorch"))
    ratio = f"{ours / peer:5.2f}x" if ours and peer else ""
    show = lambda value: f"{value:10.1f}" if value else " " * 10
    print(f"{bench:<10} {show(ours)} {show(peer)} img/s (PyTorch) {ratio:>6}  {case}")
END
}
export -f hashes equipoise train process_of binaries doctor verify same_run_twice killed_and_resumed nccl_alone nccl_in_training \
    generation beside sampling same_samples training same_losses

has_gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$device" = cuda ] && [ "$has_gpu" != 1 ]; then
    for name in binaries doctor verify same_run_twice killed_and_resumed nccl_alone nccl_in_training generation sampling training same_losses; do
        record "$name" "not run" 0 "no GPU: PyTorch sees none"
    done
    exit 0
fi

check binaries 60 binaries
if [ "$failures" -gt 0 ]; then
    echo "the binaries do not run with the libtorch in $torch_lib: nothing else can" >&2
    exit 1
fi
check doctor 60 doctor
check verify 120 verify
check same_run_twice 240 same_run_twice
check killed_and_resumed 120 killed_and_resumed
if [ "$device" = cuda ]; then
    check nccl_alone 60 nccl_alone
    check nccl_in_training 90 nccl_in_training
else
    for name in nccl_alone nccl_in_training; do record "$name" "not run" 0 "needs a GPU"; done
fi
check sampling_fp32 90 "sampling 64 fp32"
check same_samples 10 same_samples
check resnet50_bf16 90 "training resnet50 64 256 bf16"
check resnext50_bf16 120 "training resnext50_32x4d 224 128 bf16"
check generation 120 generation
check resnet32_bf16 60 "training resnet32 32 128 bf16"
check resnet32_fp32 60 "training resnet32 32 128 fp32"
check sampling_bf16 90 "sampling 256 bf16"
check resnet50_fp32 90 "training resnet50 64 256 fp32"
check resnext50_fp32 120 "training resnext50_32x4d 224 128 fp32"

if [ "$quick" = 0 ]; then check same_losses 10 same_losses; else record same_losses "not run" 0 "needs repeated trainings"; fi

summary | tee -a "$out/log.txt"
echo "$failures checks failed; results in $out, $SECONDS s"
[ "$failures" -eq 0 ]

"""What the peers share: the device at its best public settings, and the timing of benches/src/timing.rs."""

import json
import statistics
import sys
import time

import torch


def arguments(parser):
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--serve", action="store_true", help="a window for each line on standard input")
    parser.add_argument("--profile", action="store_true", help="say where the time of a round goes")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=5)
    return parser.parse_args()


def prepare(args):
    """fp32 means fp32 on both sides; cuDNN may search for its fastest kernels, which ours does not."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def autocast(args):
    return torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16")


def measure(args, images, one_round):
    def window(rounds):
        start = time.perf_counter()
        for _ in range(rounds):
            one_round()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / max(rounds, 1)

    window(args.warmup)
    if args.serve:
        seconds = []
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            seconds.append(window(args.rounds))
            print(json.dumps({"seconds": seconds[-1]}), flush=True)
    else:
        seconds = [window(args.rounds) for _ in range(max(args.windows, 1))]
    if not seconds:
        sys.exit("no window was asked for")
    median = statistics.median(seconds)
    parts = profile(one_round) if args.profile else {}
    return parts | {
        "images_per_s": images / median,
        "median_ms": 1e3 * median,
        "mad_ms": 1e3 * statistics.median(abs(second - median) for second in seconds),
        "windows_ms": [1e3 * second for second in seconds],
    }


def profile(one_round, shown=12):
    """Where a round's time goes: operators by their own time, and what is left for Python and dispatching."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        one_round()
    start = time.perf_counter()
    one_round()
    wall = time.perf_counter() - start
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    operators = {event.key: round(1e-3 * event.self_cpu_time_total, 3) for event in events[:shown]}
    # Containers such as convolution's layers of dispatch compute nothing: what is not a kernel is overhead.
    calls = sum(event.count for event in events)
    inside = 1e-6 * sum(event.self_cpu_time_total for event in events)
    return {"profile": {"wall_ms": 1e3 * wall, "operator_calls": calls, "recorded_ms": 1e3 * inside, "top_ms": operators}}


def report(args, bench, case, line):
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    line |= {"bench": bench, "side": "pytorch", "case": case, "device": args.device, "threads": args.threads}
    print(json.dumps(line | {"torch": torch.__version__, "name": name}))

"""How far a harmful release gets, how often a healthy one is halted, and how long it takes: whole simulated rollouts.

    python -m benchmarks.rollout_halts [--runs 200] [--devices 100000]

Stages, test and halts are the product's own with their defaults (`policy.steering`), only the devices are simulated
(`tests.simulated_fleet` says how). A run of a harmful release is good when fewer than 1 % of the fleet install it.
"""

import argparse
import time
from collections.abc import Sequence

from tests.simulated_fleet import DAY_S, Ended, Habits, roll_out

from benchmarks.measure import table

#: Share bricked, background share of failures, share of devices that report.
_RELEASES = (
    (0.02, 0.002, 0.8),
    (0.02, 0.002, 0.4),
    (0.05, 0.002, 0.8),
    (0.2, 0.002, 0.8),
    (0.0, 0.001, 0.8),
    (0.0, 0.002, 0.8),
    (0.0, 0.003, 0.8),
)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--devices", type=int, default=100_000)
    options = parser.parse_args()
    began = time.process_time()
    rows = []
    for bricks, background, reports in _RELEASES:
        ended = [
            roll_out(
                seed=seed,
                bricks=bricks,
                background=background,
                devices=options.devices,
                habits=Habits(reports=reports),
                fleets=options.runs,
            )
            for seed in range(options.runs)
        ]
        rows.append(_row(ended, bricks=bricks, background=background, reports=reports, devices=options.devices))
        print(f"{bricks:g} bricked, {background:g} background: done", flush=True)
    header = ["bricks", "background", "report", "below 1 %", "halted", "waits for proof", "complete"]
    header += ["exposed, median", "at most", "bricked, median", "days to halt", "days to complete"]
    print(table(header, rows))
    print(f"{options.runs} runs each, {options.devices:,} devices, {time.process_time() - began:.0f} CPU s")


def _row(ended: Sequence[Ended], *, bricks: float, background: float, reports: float, devices: int) -> list[str]:
    def share(number: int) -> str:
        return f"{100 * number / len(ended):.1f} %"

    halted = [one.halted_at_s for one in ended if one.halted_at_s is not None]
    complete = [one.complete_at_s for one in ended if one.complete_at_s is not None]
    exposed = sorted(one.exposed for one in ended)
    return [
        f"{100 * bricks:g} %",
        f"{100 * background:g} %",
        f"{100 * reports:g} %",
        share(sum(number < devices / 100 for number in exposed)),
        share(len(halted)),
        share(len(ended) - len(halted) - len(complete)),
        share(len(complete)),
        f"{exposed[len(exposed) // 2]:,}",
        f"{exposed[-1]:,}",
        str(sorted(one.bricked for one in ended)[len(ended) // 2]),
        _days(halted),
        _days(complete),
    ]


def _days(seconds: Sequence[int]) -> str:
    """Return the median and the worst twentieth."""
    ordered = sorted(seconds)
    if not ordered:
        return ""
    return f"{ordered[len(ordered) // 2] / DAY_S:.1f}, 95 % by {ordered[int(0.95 * (len(ordered) - 1))] / DAY_S:.1f}"


if __name__ == "__main__":
    main()

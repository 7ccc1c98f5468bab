"""Rates and remaining times on a simulated clock."""

from __future__ import annotations

from engine.experts.meter import Meter


def test_the_rate_covers_the_last_ten_seconds():
    meter = Meter(now=0.0)
    assert meter.rate is None and meter.eta(100) is None
    for second in range(1, 31):
        meter.update(100.0 * min(second, 10), now=float(second))
    assert meter.rate == 0.0 and meter.eta(1000) is None
    for second in range(31, 60):
        meter.update(1000.0 + 50 * (second - 30), now=float(second))
    assert meter.rate == 50.0
    assert meter.eta(500) == 10.0


def test_earlier_bytes_do_not_count_and_a_restart_gives_no_negative_rate():
    meter = Meter(5000.0, now=0.0)
    meter.update(5100.0, now=1.0)
    assert meter.rate == 100.0
    meter.update(10.0, now=2.0)
    assert meter.rate is None
    meter.update(60.0, now=3.0)
    assert meter.rate == 50.0
    meter.restart(60.0, now=100.0)
    meter.update(70.0, now=101.0)
    assert meter.rate == 10.0

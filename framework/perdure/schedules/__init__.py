"""Durable schedules: cron expressions and intervals that survive restarts.

    schedules = ScheduleClient(ctx)                       # in a handler; ScheduleClient(ingress) elsewhere
    await schedules.set("nightly", cron="0 2 * * *", timezone="Europe/Vienna", target=reports.build, request=Day())

`Schedules` has one schedule per key, which sends itself its next firing with a delay, so the engine is the clock.
"""

from perdure.schedules.client import ScheduleClient
from perdure.schedules.messages import ScheduledRun, SchedulePage, ScheduleStatus
from perdure.schedules.recurrence import CatchUp, Overlap, ScheduledTarget, ScheduleSpec
from perdure.schedules.service import definitions

__all__ = [
    "CatchUp",
    "Overlap",
    "ScheduleClient",
    "SchedulePage",
    "ScheduleSpec",
    "ScheduleStatus",
    "ScheduledRun",
    "ScheduledTarget",
    "definitions",
]

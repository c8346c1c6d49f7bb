"""Durable schedules: cron and intervals that survive restarts, catch up by choice, and can be paused and listed.

    schedules = ScheduleClient(ctx)                       # or ScheduleClient(ingress), from outside
    await schedules.set("nightly", cron="0 2 * * *", timezone="Europe/Vienna", target=reports.build, request=Day())

`Schedules` keeps one schedule for each key and sends itself its next firing with a delay, so the engine is the clock.
"""

from perdure.schedules.client import ScheduleClient
from perdure.schedules.hosting import definitions
from perdure.schedules.messages import ScheduledRun, SchedulePage, ScheduleStatus
from perdure.schedules.recurrence import CatchUp, Overlap, ScheduledTarget, ScheduleSpec

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

"""Durable schedules: cron expressions and intervals that survive restarts.

    nightly = Schedule("nightly", reports.build, Day(), cron="0 2 * * *", timezone="Europe/Vienna")   # in a module
    serve(reports, ScheduleSetter([nightly]))             # `perdure serve MODULE` does it for the module's schedules

    schedules = ScheduleClient(ctx)                       # in a handler; ScheduleClient(ingress) elsewhere
    await schedules.set("nightly", cron="0 2 * * *", timezone="Europe/Vienna", target=reports.build, request=Day())

`Schedules` has one schedule per key, which sends itself its next firing with a delay, so the engine is the clock.
"""

from perdure.schedules.client import ScheduleClient, apply_schedules
from perdure.schedules.declaration import Schedule
from perdure.schedules.messages import ScheduledRun, SchedulePage, ScheduleStatus
from perdure.schedules.recurrence import CatchUp, Overlap, ScheduledTarget, ScheduleSpec
from perdure.schedules.service import definitions
from perdure.schedules.setter import ScheduleSetter

__all__ = [
    "CatchUp",
    "Overlap",
    "Schedule",
    "ScheduleClient",
    "SchedulePage",
    "ScheduleSetter",
    "ScheduleSpec",
    "ScheduleStatus",
    "ScheduledRun",
    "ScheduledTarget",
    "apply_schedules",
    "definitions",
]

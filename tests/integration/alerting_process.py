"""`Alerts` in a process that tests kill: ``python alerting_process.py PORT ADMIN WEBHOOK KEYFILE``."""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.alerts.service import Alerts
from perdure.security import PrivateKey
from perdure.serving import serve

if __name__ == "__main__":
    port, admin, webhook, key_file = sys.argv[1:]
    alerts = Alerts(admin, webhook_url=webhook, webhook_key=PrivateKey.load(Path(key_file)))
    raise SystemExit(serve(alerts, port=int(port)))

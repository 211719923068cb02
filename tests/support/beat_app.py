"""An app with one periodic task, for tests of beat."""

from __future__ import annotations

from celery import Celery

app = Celery("beat_app")
app.conf.beat_schedule = {"often": {"task": "tick", "schedule": 0.5}}


@app.task(name="tick", ignore_result=True)
def tick() -> None:
    """Only sent: the tests count messages."""

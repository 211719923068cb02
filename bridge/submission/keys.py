"""Where a task's record and result are kept."""

from __future__ import annotations

from bridge.names import Names, bucket_change_subject, bucket_stream, bucket_subject, escape


def result_key(task_id: str) -> str:
    """Key of a task's result in bucket `results`: Celery's own key, escaped."""
    return escape(f"celery-task-meta-{task_id}")


class TaskPlaces:
    """Streams and subjects of one task's values."""

    def __init__(self, names: Names, task_id: str) -> None:
        results, tasks = names.bucket("results"), names.bucket("tasks")
        self.result_stream = bucket_stream(results)
        self.result_subject = bucket_subject(results, result_key(task_id))
        self.result_change_subject = bucket_change_subject(results, result_key(task_id))
        self.record_stream = bucket_stream(tasks)
        self.record_subject = bucket_subject(tasks, escape(task_id))

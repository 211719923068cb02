"""Celery on NATS. Importing this package makes `nats://` known to kombu."""

from bridge import kombu_alias as kombu_alias

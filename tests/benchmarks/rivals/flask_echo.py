"""The ceiling of a Flask front: answers the JSON it got and stores nothing.

gunicorn -w 2 -k gthread --threads 8 flask_echo:front
"""

from __future__ import annotations

from flask import Flask, Response, jsonify, request

front = Flask(__name__)


@front.post("/submit")
def submit() -> Response:
    """Answer the body."""
    return jsonify(request.get_json())

FROM python:3.11-slim AS build
WORKDIR /source
RUN python -m venv /opt/venv
COPY requirements.txt ./
RUN /opt/venv/bin/pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md ./
COPY bridge bridge
COPY config config
COPY tasks tasks
COPY web web
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /app --create-home worker \
 && install --directory --owner worker /app/data
COPY --from=build /opt/venv /opt/venv
# Handlers of your own: mount them here, beside or over these.
COPY tasks /app/tasks
WORKDIR /app
USER worker
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BRIDGE_LOG_FORMAT=json \
    API_HOST=0.0.0.0 \
    API_PORT=8090 \
    DATA_DIR=/app/data
EXPOSE 8090
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-m", "bridge", "health"]
CMD ["python", "-m", "bridge", "web"]

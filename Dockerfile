# The service: docker build -t sidrec . && docker run -p 8000:8000 -v /srv/sidrec:/srv/sidrec sidrec (docs/operate.md)
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 sidrec
WORKDIR /opt/sidrec
COPY . .
# PyTorch for processors comes from its own index; the rest as the constraints say
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt ".[serve,postgres]"

USER sidrec
WORKDIR /home/sidrec
ENV SIDREC_BUNDLE=/srv/sidrec/bundles/first SIDREC_STORE=/srv/sidrec/store.db
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
# exec: SIGTERM reaches the service, which then ends in order
CMD ["sh", "-c", "exec sidrec serve --bundle \"$SIDREC_BUNDLE\" --store \"$SIDREC_STORE\" --bundles \"$(dirname \"$SIDREC_BUNDLE\")\" --host 0.0.0.0"]

# bge serve in a container; not built by the tests.  On CPUs:  docker build -t bge-serve .
# On CUDA:  docker build -t bge-serve --build-arg TORCH=https://download.pytorch.org/whl/cu130 .
# docker run -p 8080:8080 -v ./keys:/keys:ro bge-serve BAAI/bge-m3 --api-key-file /keys
FROM python:3.12-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url "$TORCH"
COPY . /source
RUN pip install --no-cache-dir "/source[serve]" && useradd --create-home bge
USER bge
ENTRYPOINT ["bge", "serve", "--host", "0.0.0.0", "--port", "8080"]

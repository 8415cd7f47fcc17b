# topodet with MMDetection for a machine with NVIDIA's driver: torch's wheels bring CUDA along.
#   docker build -t topodet . && docker run --gpus all --ipc host -v "$PWD:/work" -w /work topodet list
FROM python:3.12-slim
# What OpenCV and MMDetection load.
RUN apt-get update && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
COPY . /topodet
RUN pip install --no-cache-dir -c /topodet/requirements/tested.txt '/topodet[mmdet,export]' && topodet install-mmcv-ops
ENTRYPOINT ["topodet"]

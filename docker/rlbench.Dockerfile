# RLBench's interpreter with CoppeliaSim Edu 4.1, for the environment server. Never built where it was written.
# CoppeliaSim Edu is proprietary: building this image accepts its licence. RLBench is for non-commercial use.
#
#   docker build -t ai-wam-rlbench -f docker/rlbench.Dockerfile docker
#   export AI_WAM_RLBENCH_PYTHON="docker run --rm --init --network host -v $PWD:$PWD:ro -e AI_WAM_SERVER_TOKEN ai-wam-rlbench"
#   ai-wam rlbench-doctor
#
# $PWD must be the checkout whose `ai-wam` runs: the container reads benchmarks/simulators/rlbench/environment_server from it, under its
# own path. With an installed ai-wam, mount the folder that `python -c "import benchmarks; print(benchmarks.__path__)"`
# names instead. The same holds for every folder in the simulator's `paths`.
FROM ubuntu:22.04

ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates curl git xz-utils build-essential python3 python3-dev python3-venv \
        xvfb xauth libgl1 libgl1-mesa-dri libglu1-mesa libglib2.0-0 libdbus-1-3 libfontconfig1 \
        libx11-xcb1 libxi6 libxrender1 libxkbcommon-x11-0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 \
        libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libavcodec58 libavformat58 libswscale5 \
    && rm -rf /var/lib/apt/lists/*

ENV COPPELIASIM_ROOT=/opt/CoppeliaSim
ENV LD_LIBRARY_PATH=/opt/CoppeliaSim QT_QPA_PLATFORM_PLUGIN_PATH=/opt/CoppeliaSim
RUN mkdir -p "$COPPELIASIM_ROOT" \
    && curl -fsSL https://downloads.coppeliarobotics.com/V4_1_0/CoppeliaSim_Edu_V4_1_0_Ubuntu20_04.tar.xz \
    | tar -xJ -C "$COPPELIASIM_ROOT" --strip-components 1

COPY rlbench-requirements.txt /opt/
RUN python3 -m venv /opt/rlbench \
    && /opt/rlbench/bin/pip install --no-cache-dir setuptools wheel cffi numpy==1.26.4 \
    && /opt/rlbench/bin/pip install --no-cache-dir --no-deps --no-build-isolation -r /opt/rlbench-requirements.txt

ENTRYPOINT ["xvfb-run", "-a", "/opt/rlbench/bin/python"]

# The operator's image: dependencies exactly as locked, no compiler, no shell tools added, a user without rights.
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir 'uv>=0.9'
WORKDIR /src
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/sysvm
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY controller controller
RUN uv sync --frozen --no-dev --no-editable

FROM python:3.13-slim
LABEL org.opencontainers.image.title="sysvm-operator" \
      org.opencontainers.image.description="Live-patches Apache CloudStack system VMs from Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sysvm /opt/sysvm
ENV PATH=/opt/sysvm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["sysvm-operator"]
CMD ["run"]

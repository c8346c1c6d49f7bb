from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.containers.compose import Docker, NoDocker, Project, find_docker


@pytest.fixture(scope="session")
def docker(request: pytest.FixtureRequest) -> Docker:
    """The Docker engine. Without an engine the tests are skipped, which CI refuses."""
    try:
        docker = find_docker()
    except NoDocker as error:
        pytest.skip(f"no usable Docker engine: {error}")
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line(f"containers: {docker.note}")
    return docker


@pytest.fixture(scope="session")
def stack(docker: Docker) -> Iterator[Project]:
    """The healthy platform of docker-compose.yml, shared by all tests in their order."""
    project = Project(docker)
    try:
        project.up()
        yield project
    finally:
        project.remove()

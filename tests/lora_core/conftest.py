import pytest
import torch

from lora_core.native import NativeError, load


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The native kernels, where this machine can run them."""
    try:
        return load(tmp_path_factory.mktemp("kernels"))
    except NativeError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(two_threads):
    """For long loops over tiny products: on shared cores two threads mostly wait."""
    torch.set_num_threads(1)

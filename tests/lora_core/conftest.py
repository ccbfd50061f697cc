import pytest
import torch


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

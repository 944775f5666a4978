"""Real data for the examples.

`mnist()`, `cifar10()` and `imdb()` read files from the folder in the environment variable
`ADAMX_DATA_DIR`. If a file is missing, they download the data with Hugging Face's library
`datasets` (`pip install '.[data]'`). Without this library, they raise an error that names both
ways. `load()` does not download. It returns MNIST if the folder contains it, otherwise
scikit-learn's digits.

    mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]    may also be in the folder itself
    cifar10/cifar10_subset_10k_2k.npz       {train,test}_{x,y}
    imdb/imdb_bow10k.npz                    {train,test}_{indptr,indices,counts,label}, vocab
    shakespeare/input.txt                   read by `shakespeare()`, which does not download
"""

from examples.data.images import Dataset, cifar10, load, load_digits, load_mnist, mnist
from examples.data.reviews import Bags, Reviews, imdb
from examples.data.sources import read_idx
from examples.data.text import Text, shakespeare

__all__ = [
    "Bags",
    "Dataset",
    "Reviews",
    "Text",
    "cifar10",
    "imdb",
    "load",
    "load_digits",
    "load_mnist",
    "mnist",
    "read_idx",
    "shakespeare",
]

"""How the figures of the page come about, in the page's words. Imports nothing."""

METHOD = """\
* **What is timed.** Forward and `torch.autograd.grad` on an input that is no leaf, as inside a
  network; x and g are made beforehand, and the results are freed inside the timing.
* **Rounds.** Every round times each provider once, in a shuffled order, with as many repetitions
  as fill one sample. A provider several times slower than the others sits out some rounds. The
  figure is the median over the rounds; a ratio is taken within each round, and its median is
  printed: a machine that slows down slows all of a round. Each round takes the next of up to
  eight copies of x and g (64 MiB in all): on which pages they lie alone makes a copy up to half
  as fast again in the caches.
* **Intervals.** The 95 % interval of a median is by order statistics of its rounds, with no
  assumption of their distribution: of five rounds, the fewest that a cell has, it is all of them,
  from the least to the most, and holds the median 94 times in a hundred.
* **Gate.** Before a cell is timed and again after it, each provider's whole value and gradient on
  the very same tensors are compared with the reference's, and it must leave its inputs alone; so
  are each kernel's value, mask and gradient. What fails prints no time, and the run exits with 1.
* **Allocations.** Each in a process of its own. *fresh*: glibc's first threshold pinned, so that
  every result of 128 KiB or more is mapped anew and its pages fault in. *reused*: glibc told to
  keep its memory (thresholds raised). Left alone (`--allocations default`), glibc raises its
  threshold to the largest block freed, up to 32 MiB, and lies between the two. `faults`: page
  faults in one call of `fused`. Where Linux gives huge pages to who asks (`madvise`, above),
  `fused` asks for its results of 4 MiB a thread or more, so that they fault less; the bytes'
  ceilings know nothing of that, nor of results that `fused` writes past the caches, which spares
  reading their lines first (on AMD's processors; `info` says from which size). *huge*: fresh, and
  torch told to ask for every tensor (`THP_MEM_ALLOC_ENABLE=1`), so that opponents have them too.
* **Ceiling**, in brackets behind a ratio: the speed-up that the bytes read and written would give
  by themselves, derived provider by provider in `bench/traffic.py`. An opponent that computes
  slowly, or waits for page faults, is beaten by more; a ceiling below 1 says that no kernel could
  win.
* **Providers.** `fused`: the native backend. `reference`: the same rule in plain PyTorch.
  `idiom`: what people write. `idiom+compile`: the same under `torch.compile`, compiled once for
  all sizes; alone, as here, Inductor keeps its mask as a byte an element, whose store is slow on
  the CPU. `best+compile`: relu that keeps y, and a backward compiled by itself, which needs no
  such mask. `fused+compile`, `plain+compile`: ours and PyTorch's own under `torch.compile`.
  `eager-best`: the strongest eager form known; where several compete (an autograd Function of the
  fewest kernels; to 2¹⁶ elements a hook on y, which spares the Function; the idiom) all are
  timed, and the one with the least median is the cell's, beside the ceiling of the one that moves
  the fewest bytes. `plain`: PyTorch's activation with its ordinary backward. `captum`, `zennit`,
  `grad-cam`: their guided backpropagation or DeconvNet of one `nn.ReLU`, sending back the same g;
  captum sets its hooks in every call, zennit's are set beforehand. `pytorch-revgrad`: its layer
  behind PyTorch's activation. Of grad-cam and zennit the modules that are timed are loaded
  without their packages' `__init__`. `numpy`: gates in float64, for scale. `fused-triton`: the
  Triton kernels, on a GPU. `copy`: x and g cloned, the price of moving the bytes. The byte counts
  of other libraries are not derived, so they have no ceiling.
* The targets name no size for the curved activations; they are judged from 2¹⁶ up, as relu's.
"""

"""The words of the page of results: titles, notes, and what the project set out to reach."""

from __future__ import annotations

TITLES = {
    "inr-mnist": "Classifying MNIST INRs",
    "quickstart": "The quickstart: networks of scikit-learn's digits",
    "encoders-mnist": "Encoders on MNIST INRs, trained alike",
    "encoders-fashion": "Encoders on Fashion-MNIST INRs, trained alike",
    "architectures": "One model, many architectures",
    "options-mnist": "Training options on a small zoo",
    "inr-probing-mnist": "Probing, trained longer: MNIST INRs",
    "inr-probing-fashion": "Probing, trained longer: Fashion-MNIST INRs",
    "step": "A training step of NG-GNN against the textbook implementation",
    "step-ng-t": "A training step of NG-T against the textbook implementation",
    "fit": "Fitting INRs in bulk against a loop",
    "trace": "Symmetries of traced architectures",
}

_ALIKE = (
    "Every encoder has the same networks, epochs, batches and schedule, and no augmentation: test accuracy of the model "
    "that was best on validation, mean and standard deviation over seeds. Seconds per epoch are of one thread, hold the "
    "validation, and were taken while up to four other runs shared two cores: compare them roughly. Memory is that of the "
    "whole process. "
)

_PROBING = (
    "The preset `inr-probing`: 128 generated probes, answers only, on all training networks. For "
    "orientation, and not the same work, on 55,000 training networks: "
)

NOTES = {
    "quickstart": "Accuracy on networks of images never seen, one seed, and the seconds of the whole run. Both methods "
    "train on the same networks for the same number of epochs, with the same augmentation.",
    "inr-mnist": "Test accuracy of the model that was best on validation, on networks of images that no training network "
    "shows; mean and standard deviation over seeds. `mlp` reads the raw weights. For orientation, and not the same work: on "
    "55,000 training networks and 200 epochs Kofinas et al. (2024) report 91.4 % without and 94.7 % with 64 probes. "
    "The zoo: `neural-graphs zoo make inr --images mnist --recipe dws --splits 10000,1000,1000 -o zoos/mnist-dws`.",
    "encoders-mnist": _ALIKE + "Training is short: without probes, all are far from what they reach in the end. For "
    "orientation, and not the same work (55,000 networks, hundreds of epochs): NG-T with 64 probes 97.3 %, ScaleGMN-B "
    "96.6 %, ProbeGen 98.4 %. The zoo: `neural-graphs zoo make inr --images mnist --recipe dws --splits 10000,1000,1000`.",
    "encoders-fashion": _ALIKE
    + "For orientation, and not the same work: NG-T with 64 probes 74.8 %, ScaleGMN-B 80.8 %, ProbeGen "
    "87.7 %. The zoo: `neural-graphs zoo make inr --images fashion-mnist --recipe dws --splits 8000,1000,1000`.",
    "architectures": "One model per seed, trained on networks of eleven architectures and tested on nineteen: the eight "
    "others, deeper or wider than any trained on or of other shapes, it never saw. The zoo: `neural-graphs zoo make "
    "inr --images mnist --recipe dws --diverse --splits 3800,380,1900 --shard-size 64`.",
    "options-mnist": "Each option by itself, on four networks per image of 1,000 images; all runs make the same number of "
    "steps with labels (pre-training adds steps without). The zoo: `neural-graphs zoo make inr --images mnist --recipe dws "
    "--size 1400 --views 4 --splits 1000,150,250`.",
    "inr-probing-mnist": _PROBING + "ProbeGen reports 98.4 %.",
    "inr-probing-fashion": _PROBING + "ProbeGen reports 87.7 %.",
    "step-ng-t": "As for NG-GNN; the twin holds queries, keys and values of all pairs of neurons, as the equations read. "
    "Blocks and all pairs are two kinds of attention of the same widths.",
    "step": "Forward, backward and AdamW step of a classifier; twin and library in turn in one process, ratios round by "
    "round. The twin is the edge-list implementation: dense `[B, N, N, d]` embedding, gather, concatenate, scatter. "
    "`matmul_share` is the FLOP/s of the step's matrix products over those of a large matrix product in the same run.",
    "fit": "Networks fitted together by batched matrix products, against one module and optimiser per network in turn.",
    "trace": "The group that `trace` finds for each architecture, and the largest change of the network's output, relative "
    "to its largest entry, under random elements of it (three by default; to be at most 1e-10 in float64 and 1e-4 "
    "in float32). `Memory` is what network and graph take together, over the network alone. "
    "`Moved` is the share of the parameters that some element moves. `Control` is the smallest "
    "change when one of the tensors that the element moves is left as it was; of vision and language models at "
    "most 20 of them are tried, spread evenly. A tensor without effect (the bias of attention's keys, which the "
    "softmax cancels) shows nothing and is only counted, among those tried. `Rescalings` are scale, sign and "
    "phase symmetries with the largest change under them, in float64. Operators without a rule freeze what they "
    "touch. Weights are random; language models have two layers, GPT-2 is in full. "
    "The float64 figures are with the models' own casts to float32 lifted to float64; Mixtral runs its experts by "
    "batched products, and T5, BART and Whisper return their logits only.",
}

BARS = {
    ("step", "speedup"): "at least 5",
    ("step", "memory_ratio"): "at most 0.33",
    ("step-ng-t", "speedup"): "at least 10 (blocks)",
    ("fit", "speedup"): "at least 4",
}
"""What the project set out to reach."""

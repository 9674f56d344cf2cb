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
    "generalisation-cifar10-gs": "Predicting accuracy from weights: small CNNs on CIFAR-10 in grey",
    "generalisation-wild-park": "Predicting accuracy from weights: CNN Wild Park, a new architecture each",
    "generalisation-wider": "Predicting accuracy from weights: trained on narrow networks, tested on wide ones",
    "generalisation-transformers": "Predicting accuracy from weights: small vision transformers on MNIST",
    "edit-dilate-mnist": "Editing MNIST INRs: dilation",
    "edit-adapt": "Adapting small CNNs to corrupted images from their weights alone",
    "optimiser-in-distribution": "Learned optimizers: perceptrons such as they were trained on",
    "optimiser-width": "Learned optimizers: wider networks than any trained on",
    "optimiser-depth": "Learned optimizers: deeper networks than any trained on",
    "optimiser-image-size": "Learned optimizers: larger images",
    "optimiser-mnist": "Learned optimizers: another data set",
    "optimiser-cnn": "Learned optimizers: convolutional networks",
    "optimiser-transformer": "Learned optimizers: a small transformer",
    "optimiser-horizon": "Learned optimizers: longer horizons than any trained for",
    "optimiser-paper-fashion": "Learned optimizers: the published network on Fashion-MNIST",
    "optimiser-paper-cifar10": "Learned optimizers: the published network on CIFAR-10",
    "optimiser-nowcast": "Nowcasting: jumping ahead in training",
    "optimiser-step": "A step of the learned optimizer against Adam's",
    "step": "A training step of NG-GNN against the textbook implementation",
    "step-ng-t": "A training step of NG-T against the textbook implementation",
    "step-mixed": "A training step of NG-GNN on networks of different architectures",
    "fit": "Fitting INRs in bulk against a loop",
    "render": "Rendering INRs in bulk against a loop",
    "bulk": "Training classifiers in bulk against one by one",
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

_TAU = (
    "Kendall's tau between predicted and measured test accuracy on the networks of test runs, of the model that was best on "
    "validation by the same figure; mean and standard deviation over seeds. All checkpoints of a run stand in one split. "
    "Statistics (`statnn`, `boosted-trees`) are seven per tensor. Figures on a part of the test networks are of the same "
    "models, trained on all. Both zoos are far smaller, and their networks far less trained, than the published ones. "
)

_OPTIMISER = (
    "Every optimizer starts from the same networks and sees the same minibatches, seed by seed. Training loss is "
    "on 5,000 fixed training images after the last step, accuracy on the test images. Baselines are tuned on this "
    "very task, each over 24 to 30 settings (learning rate, schedule: constant, linear or cosine with warm-up, "
    "and weight decay where there is one) with two further seeds: losses are of the setting with the lowest "
    "training loss, accuracies of the one with the best validation accuracy. Learned rules are not tuned: they "
    'have the learning rate and the linear schedule of their meta-training; with "lr tuned" that rate is tuned '
    "over five factors in the same way. Differences are paired by seed, with 95 % intervals over seeds (rules of "
    "several meta-seeds: of their mean). Steps to Adam's loss are the share of the horizon after which the "
    "smoothed loss of minibatches is at or below what tuned Adam ends with on the same seed. Time is that of one "
    "training step of one network on one thread, gradients included, over the same with Adam. The rules are those of "
    "`neural-graphs train optimizer rule.name=graph seed=0 out=runs/graph-0`, and so on, for 200 meta-steps on perceptrons "
    "of 8 to 64 neurons and 1 to 4 hidden layers, up to 1000 steps: `graph` of three meta-seeds (0 to 2), `ff` of two, "
    "`lstm` and `shuffled` (`rule.shuffled=true`: wrong neurons are taken for those between two tensors) of one. All have "
    "the same features, meta-budget and number of weights (2,384 to 2,408) and orthogonalise momenta. "
    "`ng-small` is `graph` of meta-seed 0, which was the best of the three on validation tasks. "
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
    "generalisation-cifar10-gs": _TAU + "For orientation, and not the same work (12,000 training networks of "
    "86 epochs): StatNN .915, NG-GNN .930, NG-T .935, ScaleGMN .941, ProbeGen .957. The zoo, 2,000 runs with three "
    "checkpoints each: "
    "`neural-graphs zoo make cnn --recipe small-cnn-zoo --images cifar10-gs --size 2000 --epochs 3 --checkpoints 1,2,3 "
    "--train-images 30000 --test-images 4000`; its images are JPEG-compressed. The rows of another zoo's name are of "
    "networks trained on those images, never seen: `--images fashion-mnist --size 300 --splits 0,0,1`, else alike.",
    "generalisation-wild-park": _TAU
    + "For orientation, and not the same work (40,000 training networks): StatNN .719, NG-GNN "
    ".804, NG-T .817, probing .93; without the activation embedding NG-GNN .778, NG-T .728. The zoo, 544 runs with three "
    "checkpoints each, four runs of one shape (in one split) with activations of their own: `neural-graphs zoo make cnn "
    "--recipe wild-park --size 544 --epochs 3 --checkpoints 1,2,3 --train-images 4000 --test-images 1500`; images averaged "
    "down to 16x16.",
    "generalisation-wider": _TAU
    + "The same Wild Park: trained on the architectures of up to the median number of hidden "
    "channels, tested on narrow ones as well as on wider ones, none of which was trained on.",
    "generalisation-transformers": _TAU
    + "The zoo, 360 runs of eight shapes with three checkpoints each: `neural-graphs zoo make cnn --recipe transformer "
    "--images mnist --side 14 --size 360 --epochs 3 --checkpoints 1,2,3 --train-images 4000 --test-images 1500`.",
    "edit-dilate-mnist": "Mean squared error between the images that edited test networks draw and the "
    "dilated images that the networks "
    "were fitted to (white is 1, times 100), of the model that was best on validation by the same figure; mean and "
    "standard deviation over seeds. Copies are an output ensemble (OCE): so many changed networks per network, whose "
    "outputs are averaged. Time per network is that of editing, in batches on one thread. `refit` goes on fitting the"
    " network itself to the dilated image by Adam; it is told the image, which no editor is. Rendered finer: at every"
    " fourth of a pixel, against the target interpolated linearly; what `no edit` has there is for the most part its "
    "undilated strokes. The rows named after other zoos are of networks of other images, or of an architecture, that "
    "were never trained on. For orientation, and not the same work (55,000 training networks and 200 epochs): NFN "
    "2.55, NG-GNN 2.38, with 64 probes 2.06, NG-T with 64 probes 1.75, ScaleGMN-B 1.89, a graph metanetwork with 8 "
    "copies 1.06. The zoo: `neural-graphs zoo make inr --images mnist --recipe dws --splits 10000,1000,1000 -o "
    "zoos/mnist-dws`; the others: `--images fashion-mnist --size 500 --splits 0,0,1 -o zoos/fashion-inr` and "
    "`--widths 24,24,24 --size 500 --splits 0,0,1 -o zoos/mnist-inr-24-24-24`.",
    "edit-adapt": "Accuracy of test networks (of training runs never seen) on corrupted test images: CNNs "
    "that were trained on "
    "clean images, without edit and with weights changed by an editor that has seen the network's weights and no "
    "image. The editor was trained on other networks and corrupted training images, one for both corruptions: noise "
    "(standard deviation 0.1 of white) and blur (Gaussian, one pixel). Gains are points of accuracy over no edit on "
    "the same images, of all networks and of the quarter that is best on clean images; then what the edited networks "
    "make of clean images. `scales` is a change that looks at no network: one learned factor per tensor and "
    "non-linearity. The editor trained on clean images tells how much is gained because the networks become better at"
    " all: they were trained for three epochs only. The zoo is that of the accuracies predicted from weights on "
    "CIFAR-10 in grey, the last checkpoint of every run.",
    "bulk": "Training steps of many networks at once, each with its own hyper-parameters, against a module and an optimiser "
    "of torch's per network, and against `torch.func.vmap` over `functional_call`, in turn in one process. One by one has "
    "the number of threads at which it is faster. A network-epoch is one network's pass over 50,000 images. Wild Park's "
    "networks are large enough to keep the processor busy by themselves, so there is little to gain.",
    "optimiser-in-distribution": _OPTIMISER + "The widths of these networks are such that none of them can be drawn in "
    "meta-training.",
    **{
        f"optimiser-{group}": _OPTIMISER
        for group in ("width", "depth", "image-size", "mnist", "cnn", "transformer", "horizon")
    },
    **{
        f"optimiser-paper-{data}": _OPTIMISER
        + "Three convolutions and minibatches of 128 images, as Kofinas et al. (2024), who report after 1000 steps "
        f"{figures} (from all training images, of which here the last are held for validation). Their Adam has no schedule."
        for data, figures in (
            ("fashion", "Adam 81.0 %, FF 85.1 %, LSTM 85.7 %, NG-GNN 85.9 %, NG-T 86.5 %"),
            ("cifar10", "Adam 54.8 %, FF 57.6 %, LSTM 59.1 %, NG-GNN 64.4 %, NG-T 60.8 %"),
        )
    },
    "optimiser-nowcast": "One nowcaster per seed, trained on runs of Adam of six perceptrons on 8x8 Fashion-MNIST and "
    "digits (16 to 32 wide, 1 to 3 hidden layers, 1200 steps, a checkpoint every 20), reads five checkpoints. `loss after "
    "jump`: training loss of networks never seen, set so many intervals (of 20 steps) ahead after 100, 200 and 380 steps at "
    "learning rates of 1e-3, 3e-3 and 1e-2, mean over all; `Adam` has made those steps, `last state` has not moved; a "
    "network that diverged counts 1000. `weight error`: mean absolute error of the forecast weights over that of no change. "
    "`steps to target`: until Adam's own final loss, at the learning rate that is best for Adam, with one jump after every "
    "100 steps of 40, 33, 26, 21, 16, 11, 8, 5, 3 and 1 intervals (Knyazev et al. 2025); 1200 where it is not reached; "
    "`mean loss` is that over the whole run. Tested on seeds, a width, a depth, a data set and a kind of layer never seen.",
    "optimiser-step": "Seconds of `LearnedOptimizer.step` over those of `torch.optim.Adam`'s, both as they come, in turn on "
    "equal gradients. `k`: the graph is asked every k-th step (`every=k`); `lstm` and `ff` have no graph. `training ratio` "
    "adds the forward and backward pass to both, on batches of 128 (MLP 784-256-10) and of 16 32x32 images (ResNet-18).",
    "step-mixed": "As for NG-GNN on one architecture, with every network of a CNN Wild Park architecture of its own: "
    "kernels up to 7x7 (49 values per edge), residuals. The twin is a flat edge list over the whole batch, made beforehand "
    "as a data loader would: it embeds edges only, gathers, concatenates, scatters.",
    "step-ng-t": "As for NG-GNN; the twin holds queries, keys and values of all pairs of neurons, as the equations read. "
    "Blocks and all pairs are two kinds of attention of the same widths.",
    "step": "Forward, backward and AdamW step of a classifier; twin and library in turn in one process, ratios round by "
    "round. The twin is the edge-list implementation: dense `[B, N, N, d]` embedding, gather, concatenate, scatter. "
    "`matmul_share` is the FLOP/s of the step's matrix products over those of a large matrix product in the same run.",
    "fit": "Networks fitted together by batched matrix products, against one module and optimiser per network in turn.",
    "render": "All networks drawn at once by `graph.render`, by `NeuralGraph.run` (one batch of products, "
    "autograd keeps every "
    "value), and by one module after another at the number of threads, 1 or as many as the others have, at which that"
    " is faster; in turn in one process. Forward alone, and with the gradient of a mean squared error with respect to"
    " all parameters. `matmul share` counts the products of the task alone: what `graph.render` computes again in the"
    " backward pass, instead of keeping it, is work that does not count.",
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
    ("step-mixed", "speedup"): "at least 5",
    ("fit", "speedup"): "at least 4",
    ("render", "speedup"): "at least 5",
    ("bulk", "speedup"): "at least 5 (small-cnn-zoo)",
}
"""What the project set out to reach."""

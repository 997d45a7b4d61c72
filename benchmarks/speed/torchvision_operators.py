"""Lets a torchvision load that was built for another PyTorch: import this before it."""

import contextlib

import torch

if torch.version.cuda is None:
    # Such a torchvision lacks its operators and asks for two of them as it loads; no ResNet uses them. Where it matches
    # PyTorch, as on a machine with a GPU, it defines them itself, and would abort if they were there already.
    with contextlib.suppress(RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

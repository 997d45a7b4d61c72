"""The article's snippet in `Learner` form.

python docs/article.py                          # CIFAR-10, ImageNet ResNet50: downloads both, wants a GPU
python docs/article.py digits 32 resnet20       # the same on bundled data and weights, in a minute or two
"""

import sys

from kbaseline import ImageData, Learner

source, size, backbone = sys.argv[1:] or ("tfds:cifar10", 128, "resnet50")

learn = Learner(ImageData.from_source(source, size=int(size)), backbone=backbone)
learn.lr_find()
learn.fit(3)
learn.fit_one_cycle(3, max_lr=1e-3)
learn.unfreeze()
learn.lr_find()
learn.fit_one_cycle(3, max_lr=slice(1e-6, 1e-4))
result = learn.tta()
print(f"plain {result.plain.accuracy:.2%}, with test-time augmentation {result.tta.accuracy:.2%}")

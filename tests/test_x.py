import numpy as np, keras
def test_x(rng):
    from kbaseline.model import build_classifier, freeze, classifier_groups
    from kbaseline.optimizer import LayerwiseAdamW
    m = build_classifier(4, 16, "resnet20", "none")
    freeze(m)
    m.compile(LayerwiseAdamW(1e-3, classifier_groups(m), [.01,.1,1.]), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = rng.integers(0,256,(8,20,20,3),dtype=np.uint8); y = rng.integers(0,4,8)
    m.fit(x,y,batch_size=4,verbose=0)

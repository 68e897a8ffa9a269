"""Class lists of the semantic data sets, and the pixel values that stand for them.

Names and numbers are those of the official releases; value ``k`` of a class map is entry ``k - 1``.

- COCO-Stuff: 80 things and 91 stuff classes, numbered 1 to 182 with 11 numbers unused
  (https://github.com/nightrome/cocostuff, labels.txt; Caesar et al., CVPR 2018).
- ADE20K-150: the first name of each row of objectInfo150.txt
  (https://github.com/CSAILVision/sceneparsing; Zhou et al., CVPR 2017).
- PASCAL Context-59: the 59 most frequent of 459 labels, in the order of 59_labels.txt
  (https://cs.stanford.edu/~roozbeh/pascal-context; Mottaghi et al., CVPR 2014).
- PASCAL VOC-20: http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (Everingham et al.).
"""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


_COCO_91 = _names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
-street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, -hat, backpack, umbrella, -shoe, -eye glasses, handbag, tie, suitcase, frisbee,
skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, -plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -mirror,
dining table, -window, -desk, toilet, -door, tv, laptop, mouse, remote, keyboard, cell phone,
microwave, oven, toaster, sink, refrigerator, -blender, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush, -hair brush""")
"""COCO's things by number, 1 to 91; those with a minus have no outline anywhere."""

_STUFF = _names("""
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood""")
"""COCO-Stuff's stuff by number, 92 to 182."""

COCO_STUFF_IDS = {
    number: name for number, name in enumerate((*_COCO_91, *_STUFF), 1) if not name.startswith("-")
}
"""COCO-Stuff number (1 to 182) -> name; the pixel value of the 164k maps is one less."""

COCO_STUFF = tuple(COCO_STUFF_IDS.values())
"""171 names: things, then stuff."""

ADE20K_150 = _names("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent,
bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag""")

VOC_20 = _names("""
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
motorbike, person, pottedplant, sheep, sofa, train, tvmonitor""")

CONTEXT_59 = _names("""
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor, bag, bed, bench, book, building, cabinet,
ceiling, cloth, computer, cup, door, fence, floor, flower, food, grass, ground, keyboard, light,
mountain, mouse, curtain, platform, sign, plate, road, rock, shelves, sidewalk, sky, snow,
bedclothes, track, tree, truck, wall, water, window, wood""")

CONTEXT_459 = dict(zip(sorted(CONTEXT_59), (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
    strict=True))
"""Name -> its number among the 459 labels of the original annotation files, which are sorted."""

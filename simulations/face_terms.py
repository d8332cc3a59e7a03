"""Which facial findings are drawn, and what they do to a face's measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Measure:
    """A face measure: mean and spread in healthy people, and the limits of what can be drawn."""

    mean: float
    spread: float
    least: float = 0.0
    most: float = 2.0


MEASURES: Mapping[str, Measure] = MappingProxyType({
    # Head, in face units
    "crown": Measure(1.02, 0.022, 0.78, 1.17),
    "temple": Measure(0.64, 0.018, 0.48, 0.78),
    "cheekbone": Measure(0.665, 0.014, 0.54, 0.78),
    "cheek": Measure(0.595, 0.02, 0.44, 0.76),
    "jaw": Measure(0.465, 0.024, 0.28, 0.64),
    "chin_width": Measure(0.205, 0.022, 0.09, 0.38),
    "chin_y": Measure(0.92, 0.026, 0.72, 1.1),
    "hairline": Measure(0.66, 0.034, 0.38, 0.94),
    "skew": Measure(0.0, 0.012, -0.12, 0.12),
    # Relief, strengths
    "flat_top": Measure(0.0, 0.2, 0.0, 1.2),
    "bossing": Measure(0.15, 0.20),
    "glabella": Measure(0.10, 0.20),
    "metopic": Measure(0.0, 0.12, 0.0, 1.0),
    "malar": Measure(0.75, 0.18, 0.0, 1.2),
    "sunken": Measure(0.05, 0.15),
    "midface": Measure(0.15, 0.22),
    "puff": Measure(0.35, 0.3, 0.0, 1.8),
    "hollow": Measure(0.10, 0.12, 0.0, 1.0),
    "chin_relief": Measure(0.30, 0.30),
    "receding": Measure(0.15, 0.18, 0.0, 1.3),
    "nasolabial": Measure(0.15, 0.15, 0.0, 1.3),
    "ridge": Measure(0.05, 0.15),
    "dimple": Measure(0.05, 0.12, 0.0, 1.0),
    # Eyes
    "eye_gap": Measure(0.29, 0.015, 0.19, 0.42),
    "eye_width": Measure(0.128, 0.01, 0.07, 0.19),
    "eye_open": Measure(0.056, 0.0075, 0.018, 0.105),
    "eye_y": Measure(-0.06, 0.012, -0.15, 0.05),
    "slant": Measure(0.04, 0.08, -0.55, 0.6),
    "telecanthus": Measure(0.0, 0.009, -0.02, 0.07),
    "almond": Measure(0.2, 0.30, -0.3, 1.5),
    "ptosis": Measure(0.05, 0.17, 0.0, 0.95),
    "fold": Measure(0.0, 0.18, 0.0, 1.0),
    "hood": Measure(0.15, 0.20, 0.0, 1.0),
    "deep": Measure(0.12, 0.20, 0.0, 1.3),
    "bulge": Measure(0.05, 0.15, 0.0, 1.0),
    "bags": Measure(0.12, 0.20, 0.0, 1.2),
    "evert": Measure(0.0, 0.2, 0.0, 1.4),
    "notch": Measure(0.0, 0.2, 0.0, 1.3),
    "bare_lid": Measure(0.1, 0.20, 0.0, 1.0),
    "lash": Measure(0.1, 0.18, -0.8, 1.6),
    "blue_sclera": Measure(0.0, 0.15, 0.0, 1.0),
    "blue_iris": Measure(0.0, 0.15, 0.0, 1.0),
    "keyhole": Measure(0.0, 0.15, 0.0, 1.2),
    "specks": Measure(0.0, 0.12, 0.0, 1.0),
    "squint": Measure(0.0, 0.14, -1.4, 1.4),
    # Brows
    "brow_y": Measure(-0.235, 0.012, -0.36, -0.17),
    "brow_arch": Measure(0.055, 0.018, 0.0, 0.17),
    "brow_thick": Measure(0.058, 0.012, 0.016, 0.14),
    "brow_long": Measure(0.0, 0.40, -1.0, 2.0),
    "brow_density": Measure(0.8, 0.12, 0.05, 1.0),
    "bare_lateral": Measure(0.05, 0.15, 0.0, 1.0),
    "bare_medial": Measure(0.0, 0.15, 0.0, 1.0),
    "synophrys": Measure(0.0, 0.16, 0.0, 1.0),
    "flare": Measure(0.1, 0.18, 0.0, 1.2),
    # Nose
    "nose_y": Measure(0.32, 0.022, 0.16, 0.48),
    "bridge_width": Measure(0.075, 0.011, 0.03, 0.15),
    "bridge_relief": Measure(0.75, 0.14, 0.0, 1.8),
    "saddle": Measure(0.10, 0.16, 0.0, 1.3),
    "scoop": Measure(0.0, 0.15, 0.0, 1.2),
    "convex": Measure(0.10, 0.16, 0.0, 1.2),
    "tip_width": Measure(0.1, 0.014, 0.05, 0.19),
    "tip_relief": Measure(0.2, 0.20, 0.0, 1.2),
    "tip_drop": Measure(0.1, 0.18, -0.5, 1.3),
    "wing_width": Measure(0.165, 0.013, 0.1, 0.26),
    "nostril": Measure(0.25, 0.18, 0.0, 1.4),
    "columella": Measure(0.10, 0.15, 0.0, 1.2),
    # Mouth
    "philtrum": Measure(0.175, 0.016, 0.08, 0.3),
    "philtrum_width": Measure(1.0, 0.18, 0.3, 2.4),
    "groove": Measure(0.75, 0.15, 0.0, 2.0),
    "mouth_width": Measure(0.245, 0.02, 0.14, 0.38),
    "upper_lip": Measure(0.052, 0.009, 0.008, 0.12),
    "lower_lip": Measure(0.066, 0.01, 0.018, 0.15),
    "corner": Measure(-0.008, 0.015, -0.06, 0.1),
    "tent": Measure(0.0, 0.12, 0.0, 1.3),
    "bow": Measure(0.7, 0.26, -0.6, 2.4),
    "gape": Measure(0.05, 0.10, 0.0, 1.0),
    "pout": Measure(0.15, 0.18, 0.0, 1.3),
    "tongue": Measure(0.0, 0.12, 0.0, 1.2),
    "cleft": Measure(0.0, 0.12, 0.0, 1.0),
    "teeth": Measure(0.6, 0.25, 0.0, 1.0),
    "tooth_size": Measure(0.0, 0.25, -0.8, 1.3),
    "tooth_gap": Measure(0.0, 0.20, 0.0, 1.3),
    # Ears
    "ear_y": Measure(0.06, 0.03, -0.08, 0.28),
    "ear_size": Measure(0.205, 0.016, 0.08, 0.32),
    "ear_out": Measure(0.055, 0.02, 0.0, 0.2),
    "ear_tilt": Measure(0.1, 0.08, -0.3, 0.8),
    "ear_odd": Measure(0.05, 0.12, 0.0, 1.2),
    "rim": Measure(0.1, 0.15, 0.0, 1.2),
    "lobe": Measure(0.25, 0.25, -0.6, 1.6),
    # Hair and skin
    "density": Measure(0.97, 0.14, 0.0, 1.0),
    "curl": Measure(0.15, 0.22, 0.0, 1.4),
    "peak": Measure(0.1, 0.20, 0.0, 1.4),
    "upsweep": Measure(0.0, 0.12, 0.0, 1.0),
    "fair": Measure(0.0, 0.15, 0.0, 1.0),
    "stain": Measure(0.0, 0.12, 0.0, 1.0),
    "spots": Measure(0.0, 0.12, 0.0, 1.0),
    "tag": Measure(0.0, 0.12, 0.0, 1.0),
})  # fmt: skip

AGEING: Mapping[str, float] = MappingProxyType({
    "chin_y": 0.7, "cheek": -0.5, "puff": -0.8, "eye_open": -0.7, "nasolabial": 0.8, "nose_y": 0.6,
    "hairline": -0.3, "bridge_relief": 0.6, "jaw": 0.5, "bossing": -0.6,
})  # fmt: skip

# In spreads of the measure; every label is the ontology's.
FACIAL_TERMS: Mapping[str, Mapping[str, float]] = MappingProxyType({
    # Head shape
    "HP:0000252": {"crown": -4.0, "temple": -3.6, "hairline": -2.6},  # Microcephaly
    "HP:0005484": {"crown": -4.0, "temple": -3.6, "hairline": -2.6},  # Secondary microcephaly
    "HP:0011451": {"crown": -4.0, "temple": -3.6, "hairline": -2.6},  # Primary microcephaly
    "HP:0000253": {"crown": -4.0, "temple": -3.6, "hairline": -2.6},  # Progressive microcephaly
    "HP:0000256": {"crown": 3.6, "temple": 4.0, "hairline": 2.6},  # Macrocephaly
    "HP:0004482": {"crown": 3.0, "temple": 3.4, "hairline": 2.0},  # Relative macrocephaly
    "HP:0000248": {"temple": 2.6, "crown": -1.6, "flat_top": 4.0, "cheekbone": 1.6},  # Brachycephaly
    "HP:0000268": {"temple": -2.6, "crown": 2.2, "cheekbone": -2.0},  # Dolichocephaly
    "HP:0030799": {"temple": -2.6, "crown": 2.2, "cheekbone": -2.0},  # Scaphocephaly
    "HP:0000262": {"crown": 4.4, "hairline": 3.2, "temple": -0.6},  # Turricephaly
    "HP:0000244": {"crown": 4.0, "hairline": 3.0, "temple": 2.0, "flat_top": 2.0},  # Brachyturricephaly
    "HP:0001363": {"crown": 2.4, "flat_top": 2.0, "temple": -1.5},  # Craniosynostosis
    "HP:0000243": {"temple": -3.0, "metopic": 4.5},  # Trigonocephaly
    "HP:0005487": {"metopic": 5.0},  # Prominent metopic ridge
    "HP:0001357": {"skew": 4.5},  # Plagiocephaly
    "HP:0000324": {"skew": 5.0},  # Facial asymmetry
    "HP:0004484": {"skew": 5.0},  # Craniofacial asymmetry
    "HP:0000276": {"chin_y": 3.6, "cheek": -2.4, "cheekbone": -2.2, "jaw": -1.6, "temple": -1.4},  # Long face
    "HP:0000275": {"cheekbone": -3.4, "cheek": -3.2, "temple": -2.0, "jaw": -2.4},  # Narrow face
    "HP:0000311": {  # Round face
        "cheek": 3.6, "jaw": 3.6, "chin_y": -2.6,
        "cheekbone": 2.4, "chin_width": 2.0, "puff": 1.0,
    },
    "HP:0000283": {"cheekbone": 3.4, "cheek": 3.0, "jaw": 2.4, "temple": 1.6},  # Broad face
    "HP:0000321": {"jaw": 4.2, "cheek": 2.2, "chin_width": 3.4, "flat_top": 2.0},  # Square face
    "HP:0000325": {"temple": 3.2, "jaw": -4.0, "cheek": -2.8, "chin_width": -2.8},  # Triangular face
    "HP:0012368": {  # Flat face
        "malar": -2.6, "bridge_relief": -2.6, "midface": 2.0,
        "cheekbone": 2.0, "nasolabial": -1.0,
    },
    "HP:0000280": {  # Coarse facial features
        "nasolabial": 3.4, "wing_width": 2.0, "tip_width": 1.6, "lower_lip": 1.8,
        "upper_lip": 1.2, "brow_thick": 1.4, "bags": 1.2,
    },
    # Forehead and hair line
    "HP:0002007": {"bossing": 4.0, "temple": 1.0},  # Frontal bossing
    "HP:0011220": {"bossing": 3.4, "hairline": 1.0},  # Prominent forehead
    "HP:0002003": {"hairline": 2.4, "temple": 2.2, "bossing": 1.0},  # Large forehead
    "HP:0000337": {"temple": 3.4},  # Broad forehead
    "HP:0000341": {"temple": -3.4, "hollow": 3.0},  # Narrow forehead
    "HP:0000348": {"hairline": 3.4, "crown": 1.6},  # High forehead
    "HP:0000340": {"crown": -2.6, "hairline": -1.6, "ridge": 3.0},  # Sloping forehead
    "HP:0000350": {"hairline": -3.0, "temple": -2.0},  # Small forehead
    "HP:0002057": {"glabella": 4.6},  # Prominent glabella
    "HP:0000336": {"ridge": 4.6},  # Prominent supraorbital ridges
    "HP:0025386": {"hollow": 4.6},  # Bitemporal hollowing
    "HP:0000294": {"hairline": -4.0},  # Low anterior hairline
    "HP:0009890": {"hairline": 4.2, "density": -1.0},  # High anterior hairline
    "HP:0000349": {"peak": 4.6},  # Widow's peak
    "HP:0002236": {"upsweep": 5.0},  # Frontal upsweep of hair
    "HP:0008070": {"density": -4.6},  # Sparse hair
    "HP:0002209": {"density": -4.6},  # Sparse scalp hair
    "HP:0001596": {"density": -6.5},  # Alopecia
    "HP:0002289": {"density": -7.5, "brow_density": -7.0, "lash": -2.0},  # Alopecia universalis
    "HP:0002213": {"density": -3.0, "curl": -0.6},  # Fine hair
    "HP:0002212": {"curl": 4.0},  # Curly hair
    "HP:0040149": {"curl": 5.0},  # Woolly scalp hair
    "HP:0002224": {"curl": 5.0},  # Woolly hair
    "HP:0002208": {"curl": 2.6},  # Coarse hair
    "HP:0002286": {"fair": 5.0},  # Fair hair
    "HP:0005599": {"fair": 5.0},  # Hypopigmentation of hair
    # Eyes
    "HP:0000316": {"eye_gap": 3.6},  # Hypertelorism
    "HP:0000601": {"eye_gap": -3.6},  # Hypotelorism
    "HP:0000506": {"telecanthus": 5.0},  # Telecanthus
    "HP:0000494": {"slant": -3.8},  # Downslanted palpebral fissures
    "HP:0000582": {"slant": 3.8},  # Upslanted palpebral fissure
    "HP:0000286": {"fold": 4.2},  # Epicanthus
    "HP:0000508": {"ptosis": 4.4, "eye_open": -0.6},  # Ptosis
    "HP:0001488": {"ptosis": 4.4, "eye_open": -0.6},  # Bilateral ptosis
    "HP:0000490": {"deep": 3.8, "brow_y": 1.6},  # Deeply set eye
    "HP:0000520": {"eye_open": 4.0, "bulge": 4.0},  # Proptosis
    "HP:0000586": {"eye_open": 4.0, "bulge": 4.0},  # Shallow orbits
    "HP:0000637": {"eye_width": 3.8},  # Long palpebral fissure
    "HP:0012745": {"eye_width": -3.8},  # Short palpebral fissure
    "HP:0045025": {"eye_open": -3.6},  # Narrow palpebral fissure
    "HP:0000581": {"eye_width": -2.8, "eye_open": -2.6},  # Blepharophimosis
    "HP:0007874": {"almond": 4.0},  # Almond-shaped palpebral fissure
    "HP:0000629": {"bags": 4.0},  # Periorbital fullness
    "HP:0100540": {"bags": 4.0, "hood": 2.0},  # Palpebral edema
    "HP:0100539": {"bags": 4.4, "hood": 2.4},  # Periorbital edema
    "HP:0030820": {"hood": 4.6},  # Hooded eyelid
    "HP:0007655": {"evert": 5.0},  # Eversion of lateral third of lower eyelids
    "HP:0007651": {"evert": 4.4},  # Ectropion of lower eyelids
    "HP:0000656": {"evert": 4.4},  # Ectropion
    "HP:0000652": {"notch": 5.0, "bare_lid": 2.5},  # Lower eyelid coloboma
    "HP:0000625": {"notch": 5.0, "bare_lid": 2.5},  # Eyelid coloboma
    "HP:0000527": {"lash": 4.6},  # Long eyelashes
    "HP:0011231": {"lash": 4.0},  # Prominent eyelashes
    "HP:0007665": {"lash": 3.8},  # Curly eyelashes
    "HP:0000653": {"lash": -3.0, "bare_lid": 4.0},  # Sparse eyelashes
    "HP:0007776": {"bare_lid": 4.4},  # Sparse lower eyelashes
    "HP:0000561": {"lash": -5.0, "bare_lid": 4.6},  # Absent eyelashes
    "HP:0000592": {"blue_sclera": 4.6},  # Blue sclerae
    "HP:0000635": {"blue_iris": 6.0},  # Blue irides
    "HP:0007730": {"blue_iris": 6.0},  # Iris hypopigmentation
    "HP:0001088": {"specks": 5.0},  # Brushfield spots
    "HP:0000612": {"keyhole": 5.5},  # Iris coloboma
    "HP:0000589": {"keyhole": 5.5},  # Coloboma
    "HP:0000486": {"squint": -5.0},  # Strabismus
    "HP:0000565": {"squint": -5.0},  # Esotropia
    "HP:0000577": {"squint": 5.0},  # Exotropia
    # Brows
    "HP:0000574": {"brow_thick": 3.6, "brow_density": 1.0},  # Thick eyebrow
    "HP:0011229": {"brow_thick": 4.0},  # Broad eyebrow
    "HP:0045074": {"brow_thick": -3.0},  # Thin eyebrow
    "HP:0045075": {"brow_density": -4.6},  # Sparse eyebrow
    "HP:0002223": {"brow_density": -6.5},  # Absent eyebrow
    "HP:0005338": {"bare_lateral": 5.5},  # Sparse lateral eyebrow
    "HP:0025325": {"bare_medial": 5.5},  # Sparse medial eyebrow
    "HP:0010747": {"flare": 4.4},  # Medial flaring of the eyebrow
    "HP:0000664": {"synophrys": 5.0},  # Synophrys
    "HP:0002553": {"brow_arch": 3.8, "brow_y": -0.8},  # Highly arched eyebrow
    "HP:0011228": {"brow_arch": -3.4},  # Horizontal eyebrow
    "HP:0004523": {"brow_long": 4.0},  # Long eyebrows
    # Nose
    "HP:0000431": {"bridge_width": 4.0},  # Wide nasal bridge
    "HP:0000446": {"bridge_width": -3.6},  # Narrow nasal bridge
    "HP:0000418": {"bridge_width": -3.0},  # Narrow nasal ridge
    "HP:0012811": {"bridge_width": 3.4},  # Wide nasal ridge
    "HP:0000426": {"bridge_relief": 4.2},  # Prominent nasal bridge
    "HP:0005280": {"saddle": 4.4, "bridge_relief": -3.2},  # Depressed nasal bridge
    "HP:0000457": {"saddle": 3.0, "scoop": 3.0, "bridge_relief": -3.0},  # Depressed nasal ridge
    "HP:0011120": {"scoop": 5.0},  # Concave nasal ridge
    "HP:0000444": {"convex": 4.6, "tip_drop": 2.6, "bridge_relief": 2.0},  # Convex nasal ridge
    "HP:0000448": {  # Prominent nose
        "bridge_relief": 3.4, "nose_y": 1.6,
        "tip_width": 1.6, "tip_relief": 2.2,
    },
    "HP:0003189": {"nose_y": 4.0},  # Long nose
    "HP:0003196": {"nose_y": -4.0},  # Short nose
    "HP:0000414": {"tip_width": 4.0, "tip_relief": 2.4},  # Bulbous nose
    "HP:0000455": {"tip_width": 3.8},  # Broad nasal tip
    "HP:0005274": {"tip_relief": 5.0, "tip_width": 2.4},  # Prominent nasal tip
    "HP:0000437": {"tip_drop": 4.4},  # Depressed nasal tip
    "HP:0000447": {"tip_width": 3.6, "wing_width": 2.2, "bridge_width": -2.0},  # Pear-shaped nose
    "HP:0000445": {"wing_width": 3.6, "bridge_width": 2.2},  # Wide nose
    "HP:0000460": {"wing_width": -3.4, "bridge_width": -2.2},  # Narrow nose
    "HP:0000463": {"nostril": 4.6, "nose_y": -1.0, "tip_drop": -2.0},  # Anteverted nares
    "HP:0009931": {"nostril": 4.4},  # Enlarged naris
    "HP:0000454": {"wing_width": 4.0, "nostril": 1.4},  # Flared nostrils
    "HP:0000430": {"wing_width": -3.6},  # Underdeveloped nasal alae
    "HP:0009928": {"wing_width": 3.2},  # Thick nasal alae
    "HP:0012810": {"wing_width": 3.8},  # Wide nasal base
    "HP:0009765": {"columella": 5.0},  # Low hanging columella
    "HP:0010763": {"columella": 4.0},  # Low insertion of columella
    # Philtrum
    "HP:0000343": {"philtrum": 4.0},  # Long philtrum
    "HP:0000322": {"philtrum": -4.0},  # Short philtrum
    "HP:0000319": {"groove": -5.0},  # Smooth philtrum
    "HP:0002002": {"groove": 5.0},  # Deep philtrum
    "HP:0000289": {"philtrum_width": 5.2},  # Broad philtrum
    "HP:0011829": {"philtrum_width": -4.4},  # Narrow philtrum
    "HP:0011825": {"tent": 4.0},  # Tented philtrum
    # Lips and mouth
    "HP:0000219": {"upper_lip": -4.0},  # Thin upper lip vermilion
    "HP:0000215": {"upper_lip": 4.0},  # Thick upper lip vermilion
    "HP:0000179": {"lower_lip": 4.4},  # Thick lower lip vermilion
    "HP:0010282": {"lower_lip": -3.8},  # Thin lower lip vermilion
    "HP:0000233": {"upper_lip": -3.6, "lower_lip": -3.2},  # Thin vermilion border
    "HP:0012471": {"upper_lip": 3.6, "lower_lip": 3.6},  # Thick vermilion border
    "HP:0000232": {"pout": 4.6, "lower_lip": 2.2},  # Everted lower lip vermilion
    "HP:0010803": {"upper_lip": 3.6, "bow": 2.0},  # Everted upper lip vermilion
    "HP:0002263": {"bow": 4.6},  # Exaggerated cupid's bow
    "HP:0010800": {"bow": -5.0},  # Absent cupid's bow
    "HP:0010804": {"tent": 5.0},  # Tented upper lip vermilion
    "HP:0010806": {"tent": 4.6, "bow": -1.6},  # U-Shaped upper lip vermilion
    "HP:0000207": {"tent": 5.0, "gape": 1.6},  # Triangular mouth
    "HP:0002714": {"corner": 4.0},  # Downturned corners of mouth
    "HP:0000154": {"mouth_width": 4.0},  # Wide mouth
    "HP:0000160": {"mouth_width": -4.0},  # Narrow mouth
    "HP:0000194": {"gape": 5.0},  # Open mouth
    "HP:0000158": {"gape": 3.0, "tongue": 5.0},  # Macroglossia
    "HP:0010808": {"gape": 1.6, "tongue": 5.4},  # Protruding tongue
    "HP:0410030": {"cleft": 5.6},  # Cleft lip
    "HP:0000204": {"cleft": 5.6},  # Cleft upper lip
    "HP:0100333": {"cleft": 5.6},  # Unilateral cleft lip
    "HP:0001572": {"gape": 4.0, "teeth": 2.0, "tooth_size": 4.0},  # Macrodontia
    "HP:0000691": {"gape": 4.0, "teeth": 2.0, "tooth_size": -2.6},  # Microdontia
    "HP:0000687": {"gape": 4.0, "teeth": 1.6, "tooth_gap": 5.0},  # Widely spaced teeth
    "HP:0000668": {"gape": 4.0, "teeth": -2.0, "tooth_gap": 3.0},  # Hypodontia
    "HP:0000677": {"gape": 4.0, "teeth": -2.4, "tooth_gap": 4.0},  # Oligodontia
    # Jaw and chin
    "HP:0000347": {"chin_y": -4.0, "jaw": -2.4, "chin_width": -2.2},  # Micrognathia
    "HP:0000278": {"chin_y": -2.0, "receding": 4.4},  # Retrognathia
    "HP:0000308": {"chin_y": -3.8, "jaw": -2.2, "receding": 3.0},  # Microretrognathia
    "HP:0000201": {"chin_y": -3.8, "jaw": -2.2, "receding": 3.0},  # Pierre-Robin sequence
    "HP:0000303": {"chin_y": 2.8, "chin_relief": 3.6, "chin_width": 2.0},  # Mandibular prognathia
    "HP:0000307": {"chin_width": -4.2, "jaw": -1.6, "chin_y": 1.4},  # Pointed chin
    "HP:0000331": {"chin_y": -3.4},  # Short chin
    "HP:0400000": {"chin_y": 3.4},  # Tall chin
    "HP:0011822": {"chin_width": 4.0},  # Broad chin
    "HP:0010751": {"dimple": 5.0},  # Dimple chin
    "HP:0012801": {"jaw": -3.8},  # Narrow jaw
    "HP:0012802": {"jaw": 3.8},  # Broad jaw
    # Cheeks and midface
    "HP:0000293": {"cheek": 3.8, "jaw": 1.8, "puff": 4.0},  # Full cheeks
    "HP:0000272": {"malar": -4.4, "sunken": 3.0, "cheekbone": -1.0},  # Malar flattening
    "HP:0010669": {"malar": -4.4, "sunken": 3.0, "cheekbone": -1.0},  # Hypoplasia of the zygomatic bone
    "HP:0011800": {"midface": 4.0, "malar": -1.6},  # Midface retrusion
    "HP:0000327": {"midface": 4.0, "malar": -1.6},  # Hypoplasia of the maxilla
    "HP:0005272": {"nasolabial": 4.4},  # Prominent nasolabial fold
    "HP:0010628": {"skew": 2.4, "corner": 2.4, "ptosis": 1.2},  # Facial palsy
    "HP:0030319": {"gape": 3.6, "ptosis": 2.0, "nasolabial": -1.0},  # Weakness of facial musculature
    "HP:0000297": {"gape": 3.6, "ptosis": 2.0, "nasolabial": -1.0},  # Facial hypotonia
    "HP:0002058": {"gape": 3.6, "ptosis": 3.0, "cheek": -1.6},  # Myopathic facies
    # Ears
    "HP:0000369": {"ear_y": 4.2},  # Low-set ears
    "HP:0000400": {"ear_size": 4.6, "ear_out": 1.2},  # Macrotia
    "HP:0008551": {"ear_size": -5.0, "ear_odd": 2.6},  # Microtia
    "HP:0000411": {"ear_out": 4.6},  # Protruding ear
    "HP:0000378": {"ear_out": 3.2, "ear_odd": 3.6},  # Cupped ear
    "HP:0000394": {"ear_odd": 5.0, "ear_out": 1.6},  # Lop ear
    "HP:0000396": {"ear_odd": 4.4},  # Overfolded helix
    "HP:0000377": {"ear_odd": 4.0},  # Abnormal pinna morphology
    "HP:0009901": {"ear_odd": 4.6},  # Crumpled ear
    "HP:0000391": {"rim": 4.8},  # Thickened helices
    "HP:0000358": {"ear_tilt": 4.8},  # Posteriorly rotated ears
    "HP:0040080": {"ear_out": 3.6},  # Anteverted ears
    "HP:0009748": {"lobe": 4.4},  # Large earlobe
    "HP:0009909": {"lobe": 4.8, "ear_out": 0.8},  # Uplifted earlobe
    "HP:0000385": {"lobe": -2.8},  # Small earlobe
    "HP:0000387": {"lobe": -3.0},  # Absent earlobe
    # Skin
    "HP:0001052": {"stain": 5.5},  # Nevus flammeus
    "HP:0000996": {"stain": 4.6},  # Facial capillary hemangioma
    "HP:0000329": {"stain": 5.0},  # Facial hemangioma
    "HP:0009720": {"spots": 5.5},  # Adenoma sebaceum
    "HP:0000384": {"tag": 6.0},  # Preauricular skin tag
})  # fmt: skip

"""Words of which tests make texts."""


def listed(words: str) -> list[str]:
    return words.split()


WORDS = listed("""
account adapter airport amount anchor answer apple archive arrow artist autumn balance barrel basket battery beacon
benefit bicycle blanket border bottle branch bridge budget builder button cabinet camera canal candle captain carbon
carpet castle ceiling century chamber channel chapter charter circle climate clock cluster coffee column comet compass
concert copper corner cotton courier cradle crystal culture current curtain cushion decade delivery desert dialect
diamond district doctor dragon drawer dynamo eagle editor elbow engine envelope episode escape estate fabric factory
falcon farmer feather ferry fiction filter flavour flight flower forest fortune fossil fountain frame freight garden
gesture glacier glove granite gravel guitar hammer harbour harvest hazard helmet heron hollow horizon hotel hunter
island jacket journal jungle kettle kitchen ladder language lantern laundry leather lecture ledger lemon letter
library lizard locket lumber machine magnet mango marble market meadow medal melody mirror mixture molecule monsoon
morning mountain museum mustard napkin needle nephew notebook nozzle number oasis object ocean office olive orbit
orchard organ oyster packet paddle palace paper parcel parrot passage pattern pebble pencil pepper picture pigeon
pillow planet plaster pocket poem pottery powder prairie prism profit puzzle quarry rabbit radio railway raven recipe
reef ribbon river rocket saddle salmon sample satellite scarf season sentence shadow shelter signal silver sketch
socket spiral sponge squirrel stadium statue summit surface tablet tailor teapot temple theatre thunder ticket timber
tractor treaty tunnel turbine umbrella valley vessel village violin volcano wagon walnut window winter zebra
""")

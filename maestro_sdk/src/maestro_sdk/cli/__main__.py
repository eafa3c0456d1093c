from maestro_sdk.cli import main

main()

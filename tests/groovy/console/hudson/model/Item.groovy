package hudson.model

import hudson.security.ACL
import hudson.security.AccessControlled
import hudson.security.Permission

class Item implements AccessControlled {
    static final Permission CREATE = new Permission('Item.Create')
    static final Permission CONFIGURE = new Permission('Item.Configure')
    static final Permission READ = new Permission('Item.Read')
    static final Permission BUILD = new Permission('Item.Build')
    private final String name

    Item(String name) {
        this.name = name
    }

    ACL getACL() {
        return new ACL(name)
    }
}
